"""Fine-tuning on a few screens: `Trainer(TrainConfig(model=..., train_data=...)).train()`, or `fastft train`."""

from fastft.trainer.config import TrainConfig
from fastft.trainer.loop import Trainer
from fastft.trainer.nonfinite import BadStep
from fastft.trainer.reporting.report import Report
from fastft.trainer.saving.checkpoint import DamagedCheckpoint

__all__ = ["BadStep", "DamagedCheckpoint", "Report", "TrainConfig", "Trainer"]
