"""Without triton its tests cannot be imported; pytest's first lines say that it is missing."""

from importlib.util import find_spec

import pytest
import torch

collect_ignore = [] if find_spec("triton") else ["aot.py", "test_triton.py", "test_triton_compiled.py"]


@pytest.fixture(autouse=True, scope="session")
def threads() -> None:
    """More than one, whatever the tests run on: what several threads do is to be seen."""
    torch.set_num_threads(max(2, torch.get_num_threads()))
