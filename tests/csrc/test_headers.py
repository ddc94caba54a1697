"""Every header compiles by itself, included twice, without a warning."""

import subprocess
from pathlib import Path

import pytest

from csrc.conftest import FLAGS, SOURCES

HEADERS = sorted(path for folder in ("math", "cpu") for path in (SOURCES / folder).glob("*.h"))


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_stands_alone(header: Path, compiler: str, tmp_path: Path) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "{header}"\n#include "{header}"\n')
    done = subprocess.run([compiler, *FLAGS, "-fsyntax-only", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
