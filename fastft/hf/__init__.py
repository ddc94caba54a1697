"""Hugging Face models: a fused loss for any head, by logits that are computed only if something reads them.

`trainer_loss`, `PatchCallback`, `RowsAndRest` and `clip_rows`, which work inside transformers' Trainer, are loaded when
they are first asked for: until then nothing imports transformers, or minds its version.
"""

from typing import Any

from fastft.dispatch import optional
from fastft.hf.lazy_logits import LazyLogits
from fastft.hf.patch import patch, unpatch
from fastft.hf.versions import need

__all__ = ["LazyLogits", "PatchCallback", "RowsAndRest", "clip_rows", "patch", "trainer_loss", "unpatch"]

LATER = {
    "trainer_loss": "fastft.hf.compute_loss",
    "PatchCallback": "fastft.hf.callback",
    "RowsAndRest": "fastft.hf.rows_and_rest",
    "clip_rows": "fastft.hf.rows_and_rest",
}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    need("transformers", f"{__name__}.{name}")
    return getattr(optional(LATER[name], f"{__name__}.{name}"), name)
