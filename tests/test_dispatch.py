"""fastft.dispatch: the first backend without a reason to refuse, and what is said when there is none."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastft.kernels
from fastft import dispatch
from fastft.losses import cross_entropy, linear_cross_entropy

KERNELS = Path(fastft.kernels.__file__).parent
MODULES = sorted((path.parent.name, path.stem) for path in KERNELS.glob("*/*.py") if not path.stem.startswith("_"))
# What may be missing on a machine without that toolchain; anything else that fails to import is a mistake.
OPTIONAL = {"cuda": r"fastft\._cuda|'_cuda'|CUDA|GPU", "triton": "triton|GPU"}


@pytest.mark.parametrize("name", dispatch.BACKENDS)
def test_backend_runs_here(name: str) -> None:
    """One visible skip, with the backend's own reason, for each that the other tests leave out."""
    module, why = dispatch.load("cross_entropy", name)
    if module is None:
        pytest.skip(f"{name}: {why}")
    device = "cuda" if name in ("cuda", "triton") and torch.cuda.is_available() else "cpu"
    if why := module.why_not(torch.zeros(1, 2, device=device)):
        pytest.skip(f"{name}: {why}")
    loss = cross_entropy(
        torch.zeros(1, 2, device=device), torch.zeros(1, dtype=torch.int64, device=device), backend=name
    )
    assert loss.item() == pytest.approx(0.6931472)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_these_two_are_always_there(name: str) -> None:
    assert dispatch.load("cross_entropy", name) == (sys.modules[f"fastft.kernels.{name}.cross_entropy"], None)


@pytest.mark.parametrize(("backend", "module"), MODULES, ids=["/".join(names) for names in MODULES])
def test_every_kernel_module_imports(backend: str, module: str) -> None:
    """A misspelt import inside a kernel would pass for a missing toolchain."""
    loaded, why = dispatch.load(module, backend)
    if loaded is None:
        assert backend in OPTIONAL, why
        assert re.search(OPTIONAL[backend], why or ""), why
        pytest.skip(f"{backend}: {why}")


def test_every_backend_has_a_folder_and_every_folder_is_listed() -> None:
    folders = {path.parent.name for path in KERNELS.glob("*/__init__.py")}
    assert folders <= set(dispatch.BACKENDS)
    assert {"cpu", "reference"} <= folders


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Makes backends `fastft.kernels.<name>.op` that refuse with a given reason, or do not."""

    def make(name: str, reason: str | None) -> ModuleType:
        module = ModuleType(f"fastft.kernels.{name}.op")
        module.why_not = lambda *args: reason  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"fastft.kernels.{name}", ModuleType(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    dispatch.load.cache_clear()
    yield make
    dispatch.load.cache_clear()


def test_auto_takes_the_first_without_a_reason(ops: Callable[..., ModuleType]) -> None:
    ops("one", "one is busy")
    two, three = ops("two", None), ops("three", None)
    names = ("missing", "one", "two", "three")
    assert dispatch.pick("op", names, "auto") is two
    assert dispatch.pick("op", names, "three") is three


def test_a_refusal_names_each_backend_and_its_reason(ops: Callable[..., ModuleType]) -> None:
    ops("one", "device is cpu")
    ops("two", "dtype is torch.int8")
    with pytest.raises(NotImplementedError) as refusal:
        dispatch.pick("op", ("missing", "one", "two"), "auto")
    assert str(refusal.value) == (
        "op: no backend takes these inputs\n"
        "  missing: No module named 'fastft.kernels.missing'\n"
        "  one: device is cpu\n"
        "  two: dtype is torch.int8"
    )


def test_a_named_backend_is_never_replaced(ops: Callable[..., ModuleType]) -> None:
    ops("one", "device is cpu")
    ops("two", None)
    with pytest.raises(NotImplementedError, match=r"^op: no backend takes these inputs\n  one: device is cpu$"):
        dispatch.pick("op", ("one", "two"), "one")


def test_an_unknown_name_lists_the_known(ops: Callable[..., ModuleType]) -> None:
    ops("one", None)
    with pytest.raises(ValueError, match=r"^backend is 'two'; expected 'auto' or one of one, three$"):
        dispatch.pick("op", ("one", "three"), "two")


def test_inputs_reach_why_not(ops: Callable[..., ModuleType]) -> None:
    module = ops("one", None)
    module.why_not = lambda a, b: f"{a} and {b}"  # type: ignore[attr-defined]
    with pytest.raises(NotImplementedError, match="one: 3 and 4"):
        dispatch.pick("op", ("one",), "auto", 3, 4)


def test_every_name_is_accepted_by_both_losses(backend: str) -> None:
    z, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    assert cross_entropy(z, y, backend=backend) == linear_cross_entropy(z, torch.zeros(3, 3), y, backend=backend)


def test_auto_prefers_native_code_on_the_cpu() -> None:
    def picked(dtype: torch.dtype) -> str:
        return dispatch.pick("cross_entropy", dispatch.BACKENDS, "auto", torch.zeros(1, 1, dtype=dtype)).__name__

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert picked(dtype) == "fastft.kernels.cpu.cross_entropy"
    assert picked(torch.float64) == "fastft.kernels.reference.cross_entropy"


def test_info_has_a_line_for_each_backend() -> None:
    first, *lines = dispatch.info().splitlines()
    assert first.startswith("fastft ")
    assert [line.split(":")[0].strip() for line in lines] == list(dispatch.BACKENDS)
    assert f"torch {torch.__version__}" in lines[-1]
    assert "not usable" not in lines[2]
