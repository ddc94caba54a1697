"""Embedding rows: gradients of touched ones only, tied tables, training of chosen ones only, new tokens."""

from fastft.embedding.rows import TrainableRows
from fastft.embedding.table import SparseEmbedding
from fastft.embedding.tied import TiedEmbedding, tie_lookups
from fastft.embedding.tokens import add_tokens

__all__ = ["SparseEmbedding", "TiedEmbedding", "TrainableRows", "add_tokens", "tie_lookups"]
