"""The command `fastft inspect`."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.console import Console

from fastft.trainer.arguments import parse_config
from fastft.trainer.inspection.overview import overview
from fastft.trainer.inspection.page import page
from fastft.trainer.inspection.terminal import show
from fastft.trainer.reporting.progress import say

OPTIONS = {"samples": "a number", "html": "a file"}
SAMPLES = 3
USAGE = """\
usage: fastft inspect [config.yaml] [--option value ...] [--samples N] [--html FILE]

Shows, before anything is trained, what the model will see and learn: samples with masks and weights, counts, lengths
and a verdict, of any config that `fastft train` takes. Ends with exit code 1 where the run would not learn what it is
meant to. Reads the data, the tokenizer and the model's configuration, not its weights; output_dir is not touched.

  --samples N    rows shown of each task (default: 3; 0: none)
  --html FILE    write the same as a page of its own

All options of `fastft train`:
"""


class WouldFail(Exception):
    """A run that would not learn what it is meant to; says why and what to do."""


def run_inspect(argv: Sequence[str], console: Console) -> None:
    """Print an overview of the run that the words describe, and write the page if one is asked for.

    Raises:
        WouldFail: the run would not learn what it is meant to; everything has been printed and written.
        ValueError, TypeError, OSError, ImportError: settings or data that cannot be used, as in training.
    """
    if {"-h", "--help"} & set(argv):
        print(USAGE)
    own, rest = _split(argv)
    samples, html = _samples(own.get("samples", str(SAMPLES))), own.get("html")
    target = None if html is None else _page_path(html)
    view = overview(parse_config(rest, prog="fastft inspect"), samples)
    show(view, console)
    if target is not None:
        target.write_text(page(view), encoding="utf-8")
        say(console, f"page written: {target}")
    fatal = [finding for finding in view.findings if finding.fatal]
    if fatal:
        raise WouldFail("; ".join(str(finding) for finding in fatal))


def _split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options of this command alone, and the other words."""
    own: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, given, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in OPTIONS:
            rest.append(word)
            continue
        if name in own:
            raise ValueError(f"--{name} is given twice")
        own[name] = value if given else next(islice(words, 1), "")
        if not own[name] or own[name].startswith("--"):
            raise ValueError(f"--{name} needs {OPTIONS[name]}; got {own[name] or 'nothing'}")
    return own, rest


def _samples(word: str) -> int:
    if not (word.isascii() and word.isdecimal()):
        raise ValueError(f"--samples is {word!r}; wanted a whole number >= 0 (rows shown of each task)")
    return int(word)


def _page_path(word: str) -> Path:
    """Looked at before any work is done. Raises OSError where no file can be written there."""
    path = Path(word).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"--html: '{path}' is a folder; a file is wanted, such as '{path / 'inspect.html'}'")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--html: folder '{path.parent}' does not exist")
    return path
