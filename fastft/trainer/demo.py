"""`fastft demo`: a real model learns to write docstrings, from the standard library of the running Python."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastft.trainer.arguments import parse_config
from fastft.trainer.device import training_device
from fastft.trainer.loop import Trainer
from fastft.trainer.reporting.measure import HeadCost, head_cost
from fastft.trainer.reporting.progress import say
from fastft.trainer.reporting.rendering import render, write_text
from fastft.trainer.reporting.report import Report

DEFAULTS: Mapping[str, Any] = {
    "model": "builtin:smollm2",
    "train_data": "builtin:stdlib-docstrings",
    "eval_fraction": 0.1,
    "max_length": 384,
    "on_empty": "drop",
    "group_by_length": True,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "bf16": True,
    "save_only_model": True,
    "generation_max_new_tokens": 64,
}
# For two cores of a server CPU with bf16 instructions: a few minutes from start to report.
ON_CPU: Mapping[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 40,
    "max_eval_samples": 64,
    "logging_steps": 5,
    "eval_steps": 20,
}
ON_GPU: Mapping[str, Any] = {"per_device_train_batch_size": 16, "num_train_epochs": 1.0, "eval_steps": 100}


def run_demo(argv: Sequence[str], console: Console) -> Report:
    """Train as `DEFAULTS` and the options in `argv` say, measure the head, and print the report.

    Without `--output_dir` each run gets a folder of its own, `runs/demo-<n>`.

    Raises:
        As `parse_config` and `Trainer`.
    """
    config = parse_config(argv, prog="fastft demo", defaults=demo_defaults())
    say(console, f"{config.model} learns to write docstrings from {config.train_data}; results in {config.output_dir}")
    trainer = Trainer(config, console)
    report = trainer.train()
    if report.interrupted_by is None:
        report = dataclasses.replace(report, head=measure_head(trainer))
        report.write(trainer.output_dir)
        write_text(report, trainer.output_dir)
    console.print(render(report))
    return report


def demo_defaults() -> dict[str, Any]:
    """The demo's config for the device at hand, with the first free output folder."""
    taken = {path.name for path in Path("runs").glob("demo-*")}
    number = next(n for n in range(1, len(taken) + 2) if f"demo-{n}" not in taken)
    size = ON_GPU if training_device().type == "cuda" else ON_CPU
    return {**DEFAULTS, **size, "output_dir": str(Path("runs", f"demo-{number}"))}


def measure_head(trainer: Trainer) -> HeadCost:
    """What head and loss cost on the first training batch, fused and unfused."""
    batch = trainer.shares_of(0)[0].batches[0]
    return head_cost(trainer.model, batch.to(trainer.device), trainer.autocast)
