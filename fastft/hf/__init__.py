"""Hugging Face models: a fused loss for any head, by logits that are computed only if something reads them."""

from fastft.hf.lazy_logits import LazyLogits
from fastft.hf.patch import patch, unpatch

__all__ = ["LazyLogits", "patch", "unpatch"]
