"""Fine-tuning on a few screens: `Trainer(TrainConfig(model=..., train_data=...)).train()`, or `fastft train`."""

from fastft.trainer.checkpoint import DamagedCheckpoint
from fastft.trainer.config import TrainConfig
from fastft.trainer.loop import Trainer
from fastft.trainer.nonfinite import NonFiniteLoss
from fastft.trainer.report import Report

__all__ = ["DamagedCheckpoint", "NonFiniteLoss", "Report", "TrainConfig", "Trainer"]
