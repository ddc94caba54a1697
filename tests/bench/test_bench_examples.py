from pathlib import Path

import pytest

from bench.examples import line_of

SAID = "print('as it is:  12.5 s,   339 MB, losses 10.3 10.2 9.5\\n  fastft:   6.1 s,   115 MB, losses 10.3 10.2 9.4')"


def test_cost_of_both_runs(tmp_path: Path) -> None:
    example = tmp_path / "mine.py"
    example.write_text(f"print('loading')\n{SAID}\n")
    assert line_of(example).endswith("| 12.5 | 6.1 | 339 | 115 | 10.3 9.5 | 10.3 9.4 |\n")


@pytest.mark.parametrize("program", ["print('as it is: nothing')", f"{SAID}\nraise SystemExit(3)"])
def test_an_example_that_fails_has_no_line(tmp_path: Path, program: str) -> None:
    example = tmp_path / "mine.py"
    example.write_text(program)
    with pytest.raises(RuntimeError, match=r"mine\.py ended with [03]: as it is"):
        line_of(example)
