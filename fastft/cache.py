"""Where fastft keeps what it can make again: converted models and tokenised corpora."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$FASTFT_CACHE`, else `$XDG_CACHE_HOME/fastft`, else `~/.cache/fastft`."""
    if chosen := os.environ.get("FASTFT_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastft"
