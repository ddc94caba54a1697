"""Which backend runs an op: the first, best first, that has no reason to refuse the inputs."""

import functools
import importlib
import platform
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

BACKENDS = ("cuda", "triton", "cpu", "reference")


@functools.cache
def load(op: str, backend: str) -> tuple[ModuleType | None, str | None]:
    """`(module, None)`, or `(None, why it cannot be loaded)`."""
    try:
        return importlib.import_module(f"fastft.kernels.{backend}.{op}"), None
    except ImportError as error:
        return None, str(error)


def optional(module: str, wanted_by: str) -> Any:
    """A module of a package that fastft does not depend on. Raises ImportError that says who wants it and how."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{wanted_by} needs {package}: pip install {package} ({error})") from None


def pick(op: str, backends: Sequence[str], backend: str, *args: Any) -> ModuleType:
    """The module `fastft.kernels.<backend>.<op>` that takes `args`.

    `backend` is `"auto"` (the first of `backends` whose `why_not(*args)` gives no reason) or one name.

    Raises `ValueError` for an unknown name and `NotImplementedError`, naming each backend and its
    reason, where none takes the inputs.
    """
    if backend != "auto" and backend not in backends:
        raise ValueError(f"backend is {backend!r}; expected 'auto' or one of {', '.join(backends)}")
    reasons = []
    for name in backends if backend == "auto" else (backend,):
        module, why = load(op, name)
        if module is not None:
            why = module.why_not(*args)
            if why is None:
                return module
        reasons.append(f"  {name}: {why}")
    raise NotImplementedError(f"{op}: no backend takes these inputs\n" + "\n".join(reasons))


def info() -> str:
    """One line per backend, best first: what it runs on, or why it is not usable here."""
    lines = [f"fastft {metadata.version('fastft')}, Python {platform.python_version()}"]
    for name in BACKENDS:
        try:
            state = importlib.import_module(f"fastft.kernels.{name}").describe()
        except ImportError as error:
            state = f"not usable: {error}"
        lines.append(f"{name:>10}: {state}")
    return "\n".join(lines)
