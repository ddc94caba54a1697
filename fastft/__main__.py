"""The command line: `fastft train | inspect | export | demo | info`, also as `python -m fastft`."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence

try:
    import torch
    from rich.console import Console

    import fastft
    from fastft.trainer.arguments import parse_config
    from fastft.trainer.demo import run_demo
    from fastft.trainer.distributed import lost_the_others
    from fastft.trainer.inspection.command import WouldFail, run_inspect
    from fastft.trainer.loop import Trainer
    from fastft.trainer.reporting.rendering import render
    from fastft.trainer.saving.export import run_export
except ModuleNotFoundError as error:
    raise SystemExit(
        f"fastft: {error.name} is missing, which the command line needs: pip install 'fastft[train]'"
    ) from None

USAGE = """\
usage: fastft <command> [options]

commands:
  train   [config.yaml] [--option value ...]   fine-tune a model; `fastft train --help` lists the options
  inspect [config.yaml] [--option value ...]   what it would see and learn: samples, masks, counts, a verdict
  export  CHECKPOINT OUTPUT [--option value]   what was trained, as a folder for plain transformers or PEFT
  demo    [--option value ...]                 fine-tune a small real model here and now, in minutes
  info                                         versions, devices and backends

A mistake in settings or data ends with exit code 2 and one line on stderr, a failed run or inspection with 1.
FASTFT_TRACEBACK=1 shows the Python traceback as well."""

TO_FIT = "Lower per_device_train_batch_size (and raise gradient_accumulation_steps), or set activation_checkpointing"
RANK = os.environ.get("RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None  # under torchrun
MISTAKES = (ValueError, TypeError, OSError, ImportError, NotImplementedError)


def train(argv: Sequence[str]) -> None:
    console = output()
    trainer = Trainer(parse_config(argv), console)
    console.print(render(trainer.train()))
    trainer.world.close()


def inspect(argv: Sequence[str]) -> None:
    run_inspect(argv, output())


def export(argv: Sequence[str]) -> None:
    run_export(argv, output())


def demo(argv: Sequence[str]) -> None:
    run_demo(argv, output())


def output() -> Console:
    """Standard output; files and pipes have no width of their own."""
    return Console(width=None if sys.stdout.isatty() else 120)


def info(argv: Sequence[str]) -> None:
    if argv:
        raise ValueError(f"fastft info takes no options; got {' '.join(argv)}")
    print(fastft.info())


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "inspect": inspect,
    "export": export,
    "demo": demo,
    "info": info,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    0; 1 for a failed run or inspection; 2 for a mistake; 130 for a second Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
        return fail(2, f"unknown command {command!r}: {hint}")
    try:
        COMMANDS[command](rest)
    except KeyboardInterrupt:
        return fail(130, "stopped at once; what was saved before is whole")
    except torch.OutOfMemoryError as error:
        return fail(1, f"out of memory: {str(error).splitlines()[0]} {TO_FIT}", error)
    except (ArithmeticError, WouldFail) as error:
        return fail(1, str(error), error)
    except MISTAKES as error:
        return fail(2, str(error), error)
    except RuntimeError as error:
        if not lost_the_others(error):
            raise
        return fail(1, "another process of this run has ended; what it says is the reason", error)
    return 0


def fail(code: int, message: str, error: BaseException | None = None) -> int:
    """Print one line in red to stderr; with FASTFT_TRACEBACK=1 raise the error as it is."""
    if error is not None and os.environ.get("FASTFT_TRACEBACK") == "1":
        raise error
    who = f"fastft, process {RANK}" if RANK else "fastft"
    Console(stderr=True).print(f"{who}: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
