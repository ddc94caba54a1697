"""What README shows runs as it stands."""

import pytest
from pages import ROOT, blocks, run_python

README = ROOT / "README.md"


@pytest.mark.filterwarnings("ignore")
def test_python_blocks_run_one_after_the_other() -> None:
    assert len(blocks(README, "python")) >= 3
    names = run_python(README)
    assert names["loss"].requires_grad
    assert names["table"].weight.isfinite().all()
