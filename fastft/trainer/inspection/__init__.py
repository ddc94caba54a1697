"""`fastft inspect`: a run's samples, masks and numbers before it starts, on a terminal and as a page."""

from fastft.trainer.inspection.command import WouldFail, run_inspect
from fastft.trainer.inspection.overview import Overview, overview

__all__ = ["Overview", "WouldFail", "overview", "run_inspect"]
