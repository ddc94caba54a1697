"""Fine-tuning pays only for the tokens and rows that learn."""

from fastft.dispatch import info
from fastft.hf.patch import patch, unpatch

__version__ = "0.1.0"
__all__ = ["__version__", "info", "patch", "unpatch"]
