"""What is released, made and tried: `make wheel`.

The sdist is unpacked where there is no git, the wheel is built of it with neither git nor nvcc on PATH, and put into an
empty environment: first alone, with what it depends on, then with what the quick tests want. What is in both, and their
sizes, is held to what is written here. Both stay in dist/.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
ABSENT = ("git", "nvcc")
NOT_IN_SDIST = (".ci/", "bench/results/")
LARGEST_SDIST = LARGEST_WHEEL = 1 << 20  # bytes
PIP = ("-m", "pip", "--disable-pip-version-check", "-qq")
PINNED = ("-c", str(ROOT / "constraints.txt"))


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"== {what}: {time.perf_counter() - start:.1f} s", flush=True)


def run(*command: str | Path, **more: object) -> None:
    done = subprocess.run([str(part) for part in command], **more)  # type: ignore[call-overload]
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode} of {' '.join(map(str, command))}")


def only(pattern: str) -> Path:
    (path,) = DIST.glob(pattern)
    return path


def tools(folder: Path) -> Path:
    """A folder of links to all programs on PATH but those that shall not be there."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*") if place else ():
            link = folder / program.name
            if program.name not in ABSENT and not link.is_symlink():
                link.symlink_to(program.absolute())
    return folder


def build(scratch: Path) -> tuple[Path, Path]:
    shutil.rmtree(DIST, ignore_errors=True)
    hook = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    with timed("sdist"):
        run(sys.executable, "-c", hook, DIST, cwd=ROOT, stdout=subprocess.DEVNULL)
    sdist = only("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(scratch, filter="data") if sys.version_info >= (3, 12) else archive.extractall(scratch)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "FASTFT"))}
    environment["PATH"] = str(tools(scratch / "tools"))
    with timed(f"wheel, without {' and '.join(ABSENT)}"):
        command = (*PIP, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", DIST, ".")
        run(sys.executable, *command, cwd=scratch / sdist.name.removesuffix(".tar.gz"), env=environment)
    return sdist, only("*.whl")


def tracked() -> set[str]:
    """What git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


def check_contents(sdist: Path, wheel: Path) -> None:
    """The sdist has the repository; the wheel has the package, one native module for the CPU, and nothing else."""
    with tarfile.open(sdist) as archive:
        source = {file.name.partition("/")[2] for file in archive if file.isfile()}
    wanted = {name for name in tracked() if not name.startswith(NOT_IN_SDIST)} | {"PKG-INFO"}
    expect("sdist", source, wanted)
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if ".dist-info/" not in name}
    (native,) = {name for name in installed if name.startswith("fastft/_cpu.cpython-")}
    expect("wheel", installed, {name for name in source if name.startswith("fastft/")} | {native})
    for path, most in ((sdist, LARGEST_SDIST), (wheel, LARGEST_WHEEL)):
        size = path.stat().st_size
        print(f"{path.name}: {size:,} bytes, {most:,} at most", flush=True)
        if size > most:
            sys.exit(f"{path.name} is too large")


def expect(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        sys.exit(f"{what}: should not be in it: {sorted(found - wanted)}; missing: {sorted(wanted - found)}")


def try_out(wheel: Path, scratch: Path) -> None:
    """In an environment of its own, from outside the repository."""
    python = scratch / "venv" / "bin" / "python"
    installed = ROOT / "release" / "installed.py"
    install = (python, *PIP, "install", "--no-compile", *PINNED)
    with timed("an empty environment, the wheel and what it depends on"):
        run(sys.executable, "-m", "venv", scratch / "venv")
        run(*install, wheel)
    run(python, installed, "--bare")
    with timed("what training and the quick tests want"):
        run(*install, f"{wheel}[train]", "pytest", "pytest-timeout", "hypothesis")
    run(python, installed)


def main() -> None:
    with timed("all"), tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        sdist, wheel = build(scratch)
        check_contents(sdist, wheel)
        try_out(wheel, scratch)


if __name__ == "__main__":
    main()
