"""Does an installed fastft work where the repository is not? `python release/installed.py [--bare]`

Run by the Python that it is installed for, everything from a temporary folder: what it says of itself, the command
`fastft`, and the quick tests, README's code among them. The last two want the extra `train` and pytest; with `--bare`,
for an environment that has only what `pip install fastft` brings, README's first block of code is run instead.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Less than a minute on one core: types, version, import; dispatch; losses and embeddings on every backend; README.
QUICK = (
    "test_package.py",
    "test_dispatch.py",
    "losses/test_cross_entropy.py",
    "losses/test_gradients.py",
    "losses/test_modules.py",
    "embedding/test_table.py",
    "optim/test_clipping.py",
    "test_front_page.py",
)
INFO = """\
import sys
from pathlib import Path
import fastft
assert Path(fastft.__file__).is_relative_to(sys.prefix), f"{fastft.__file__} is not what is installed"
print(fastft.info())
"""


def run(what: str, *command: str | Path, folder: Path) -> str:
    """What it prints. Neither this process's modules nor its own folder are there to be imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{what}: exit code {done.returncode}")
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)
    return done.stdout


def quick_start() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.M)
    return str(blocks[0])


def main(bare: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        info = run("fastft.info()", sys.executable, "-c", INFO, folder=folder)
        print(info, end="")
        if "cpu: not usable" in info:
            sys.exit("the CPU kernels are not usable")
        if bare:
            run("README's first code", sys.executable, "-c", quick_start(), folder=folder)
            return
        if run("fastft info", Path(sysconfig.get_path("scripts")) / "fastft", "info", folder=folder) != info:
            sys.exit("`fastft info` does not say what fastft.info() says")
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / file, folder)
        tests = [str(Path("tests") / test) for test in QUICK]
        options = ("-q", "--tb=short", "-p", "no:cacheprovider", "-m", "not slow and not gpu")
        print(run("quick tests", sys.executable, "-m", "pytest", *options, *tests, folder=folder).splitlines()[-1])


if __name__ == "__main__":
    main(bare="--bare" in sys.argv[1:])
