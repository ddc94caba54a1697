"""Fused masked losses: drop-in supersets of `torch.nn.functional`."""

from fastft.losses.cross_entropy import cross_entropy
from fastft.losses.linear_cross_entropy import linear_cross_entropy
from fastft.losses.modules import CrossEntropyLoss, LinearCrossEntropyLoss
from fastft.losses.reduction import LossStats

__all__ = ["CrossEntropyLoss", "LinearCrossEntropyLoss", "LossStats", "cross_entropy", "linear_cross_entropy"]
