"""Optimizers for embedding tables that step the touched rows only, and what goes with row gradients."""

from fastft.optim.adagrad import SparseAdagrad
from fastft.optim.adamw import SparseAdamW
from fastft.optim.clipping import clip_grad_norm_
from fastft.optim.replicas import average_row_gradients, leave_to_rows, sum_row_gradients
from fastft.optim.sgd import SparseSGD

__all__ = [
    "SparseAdagrad",
    "SparseAdamW",
    "SparseSGD",
    "average_row_gradients",
    "clip_grad_norm_",
    "leave_to_rows",
    "sum_row_gradients",
]
