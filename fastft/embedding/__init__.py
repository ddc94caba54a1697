"""Embedding rows: gradients of touched ones only, training of chosen ones only, new tokens."""

from fastft.embedding.rows import TrainableRows
from fastft.embedding.table import SparseEmbedding
from fastft.embedding.tokens import add_tokens

__all__ = ["SparseEmbedding", "TrainableRows", "add_tokens"]
