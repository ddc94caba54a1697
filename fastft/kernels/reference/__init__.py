"""Plain torch: the truth that every other backend is checked against. Any device, any dtype."""

import torch


def describe() -> str:
    return f"torch {torch.__version__}"
