"""What each integration of examples/ costs: 20 training steps as the library is, and with fastft, a process for each.

    python -m bench.examples    prints a table, and writes it to bench/results/<date>-<device>/examples.md

Losses of the two runs agree: tests/test_examples.py holds them to that. Memory is the peak beyond what was there.
"""

import re
import subprocess
import sys
from pathlib import Path

from bench.rows import commit, device_name, folder, now

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN = re.compile(r"^\s*(as it is|fastft):\s*([\d.]+) s,\s*(\d+) MB, losses ([\d.]+).* ([\d.]+)$", re.MULTILINE)
HEAD = """\
| example | seconds | with fastft | MB | with fastft | loss, first and last | with fastft |
|---|---|---|---|---|---|---|
"""


def line_of(example: Path) -> str:
    """A line of the table.

    Raises:
        RuntimeError: the example failed or printed something else; with what it said.
    """
    done = subprocess.run([sys.executable, example.name], cwd=example.parent, capture_output=True, text=True)
    runs = {name: rest for name, *rest in RUN.findall(done.stdout)}
    if done.returncode or set(runs) != {"as it is", "fastft"}:
        raise RuntimeError(f"{example.name} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}")
    cells = [f"{before} | {after}" for before, after in zip(runs["as it is"][:2], runs["fastft"][:2], strict=True)]
    losses = [f"{first} {last}" for _, _, first, last in (runs["as it is"], runs["fastft"])]
    return f"| {example.stem} | {' | '.join([*cells, *losses])} |\n"


def main() -> None:
    found = sorted(path for path in EXAMPLES.glob("*.py") if path.stem != "tiny")
    table = HEAD + "".join(line_of(example) for example in found)
    print(table)
    device = device_name("cpu")
    path = folder(device) / "examples.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# 20 steps of each example\n\n{device}, fastft {commit()}, {now()}.\n\n{table}", encoding="utf-8")


if __name__ == "__main__":
    main()
