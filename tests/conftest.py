"""What every test shares: memory that is never silently zero, one fixture over the backends, steady hypothesis."""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch

from fastft import dispatch

hypothesis.settings.register_profile("fastft", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("fastft")

EMPTY = {
    torch: ("empty", "empty_like", "empty_strided", "empty_permuted"),
    torch.Tensor: ("new_empty", "new_empty_strided"),
}


def filled_with_nan(empty: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(empty)
    def filled(*args: Any, **kwargs: Any) -> Any:
        result = empty(*args, **kwargs)
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] != "fastft":
            return result
        if result.is_floating_point():
            return result.fill_(torch.nan)
        return result.fill_(True if result.dtype == torch.bool else torch.iinfo(result.dtype).max)

    return filled


@pytest.fixture(scope="session", autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """What fastft allocates and forgets to write shows: floats start as NaN, integers as their largest value."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, names in EMPTY.items():
            for name in names:
                patch.setattr(owner, name, filled_with_nan(getattr(owner, name)))
        yield


def device_of(backend: str) -> torch.device:
    return torch.device("cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu")


def why_not(backend: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Dispatch's own reason why a backend does not run `cross_entropy` here, or None."""
    try:
        dispatch.pick("cross_entropy", (backend,), backend, torch.empty(1, 1, dtype=dtype, device=device_of(backend)))
    except NotImplementedError as error:
        return str(error).partition("\n")[2].strip()
    return None


def pytest_report_header() -> list[str]:
    return [f"fastft without {why}" for why in map(why_not, dispatch.BACKENDS) if why]


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.gpu if device_of(name).type == "cuda" else ())
        for name in dispatch.BACKENDS
        if why_not(name) is None
    ]
)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that runs here, with the device that it runs on as the default one.

    Those that do not run are named, with dispatch's reason, at the head of pytest's output and by
    `test_dispatch.test_backend_runs_here`, which is skipped for them.
    """
    with device_of(request.param):
        yield request.param


@pytest.fixture
def takes(backend: str) -> Callable[[torch.dtype], None]:
    """Call it with a dtype: skips, with dispatch's reason, where the backend refuses it."""

    def skip_unless_taken(dtype: torch.dtype) -> None:
        if why := why_not(backend, dtype):
            pytest.skip(why)

    return skip_unless_taken
