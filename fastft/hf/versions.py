"""Versions of the libraries that the integrations are written for; checked when one is imported, not when fastft is."""

import re
from importlib import metadata
from typing import Any

from fastft.dispatch import optional

# package: first version, and the first that is too new
SUPPORTED: dict[str, tuple[str, str]] = {"transformers": ("5.0", "6"), "trl": ("1.13", "2")}


def need(package: str, wanted_by: str) -> Any:
    """The module `package`; raises ImportError, with what to install, unless its version is in `SUPPORTED`."""
    first, end = SUPPORTED[package]
    install = f"pip install '{package}>={first},<{end}'"
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ImportError(f"{wanted_by} needs {package}, which is not installed: {install}") from None
    if not numbers(first) <= numbers(version) < numbers(end):
        raise ImportError(
            f"{wanted_by} is written for {package} >= {first} and < {end}; {version} is installed: {install}. "
            "fastft.losses, fastft.embedding and fastft.optim do not depend on it"
        )
    return optional(package, wanted_by)


def numbers(version: str) -> tuple[int, ...]:
    """(5, 23, 0) of "5.23.0.dev0": what comes after the first part that is no number is left out."""
    matched = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, matched[0].split("."))) if matched else ()
