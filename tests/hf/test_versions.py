"""Versions outside the stated range are refused where an integration is imported, and nowhere else."""

import importlib
from importlib import metadata

import pytest

import fastft.hf
from fastft.hf.versions import SUPPORTED, need, numbers


@pytest.mark.parametrize("name", ["trainer_loss", "PatchCallback", "RowsAndRest", "clip_rows"])
@pytest.mark.parametrize("version", ["4.57.6", "6.0.0", "6.1.0.dev0"])
def test_other_versions_of_transformers(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: version)
    with pytest.raises(
        ImportError, match=rf"fastft\.hf\.{name} is written for transformers >= 5.0 .*; {version} is inst"
    ):
        getattr(fastft.hf, name)
    importlib.reload(fastft.hf)  # the package itself does not mind
    assert fastft.hf.patch


@pytest.mark.parametrize("version", ["5.0.0", "5.0.0rc1", "5.23.0", "5.99"])
def test_versions_in_the_range(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: version)
    need("transformers", "this test")


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(
        ImportError, match=r"needs transformers, which is not installed: pip install 'transformers>=5.0"
    ):
        fastft.hf.trainer_loss  # noqa: B018
    with pytest.raises(ImportError, match=r"this test needs trl, which is not installed"):
        need("trl", "this test")


def test_the_installed_ones_are_in_the_range() -> None:
    assert numbers("5.23.0.dev0") == (5, 23, 0)
    for first, end in SUPPORTED.values():
        assert numbers(first) < numbers(end)
    need("transformers", "this test")


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match=r"module 'fastft\.hf' has no attribute 'trainer_los'"):
        fastft.hf.trainer_los  # noqa: B018
