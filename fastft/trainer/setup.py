"""Everything a run needs before its first step: model, data, optimizer, and the place to start from."""

import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastft.hf.patch import patch
from fastft.hf.pretrained import load
from fastft.trainer.checkpoint import load_optimizer
from fastft.trainer.config import TrainConfig
from fastft.trainer.corpora import check_fits, load_corpora
from fastft.trainer.device import training_device, use_bf16
from fastft.trainer.generate import pad_token
from fastft.trainer.log import RunLog
from fastft.trainer.optimizer import adamw
from fastft.trainer.progress import say
from fastft.trainer.resume import check_data, choose_start
from fastft.trainer.state import State
from fastft.trainer.windows import Windows

CONFIG, PLOT = "config.yaml", "loss.png"


class Setup:
    """What `Trainer` trains with; all of it can be read, and replaced before `train()`.

    model, tokenizer:      from `config.model`, or from the checkpoint to go on from. The model is fp32, on `device`.
    train_data, eval_data: `fastft.data.Corpus`; eval_data is None where nothing is held out.
    optimizer, windows:    AdamW, and which samples each step sees. `max_steps` is the length of the run.
    state, log, saved:     what has been counted, log.jsonl, and the newest checkpoint of this run.
    config_file:           the config as written to `output_dir`, for `fastft train`.
    device, autocast:      where, and the context in which every forward pass runs.
    """

    def __init__(self, config: TrainConfig, console: Console | None = None) -> None:
        self.config, self.console = config, console or Console()
        self.output_dir = Path(config.output_dir)
        self.plot = self.output_dir / PLOT
        self.device = training_device()
        self.bf16 = use_bf16(config.bf16, self.device)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        self.start = choose_start(config)

        source = str(self.start.checkpoint or config.model)
        say(self.console, f"loading {source} and {config.train_data}")
        self.model, self.tokenizer = load(source, torch.float32)
        self.pad_token_id = pad_token(self.tokenizer)
        self.train_data, self.eval_data = load_corpora(config, self.tokenizer)
        for corpus in (self.train_data, *([self.eval_data] if self.eval_data else [])):
            check_fits(self.model, corpus, config)
        check_data(self.start, config, self.train_data.samples)
        _fit_out(self.model, config, self.device)

        self.optimizer = adamw(self.model, config)
        self.windows = Windows(
            self.train_data.lengths, config.per_device_train_batch_size, config.gradient_accumulation_steps,
            config.seed, config.group_by_length,
        )  # fmt: skip
        by_epochs = math.ceil(config.num_train_epochs * self.windows.steps_per_epoch)
        self.max_steps = config.max_steps if config.max_steps > 0 else by_epochs
        self.state = State()
        if self.start.checkpoint is not None:
            load_optimizer(self.start.checkpoint, self.model, self.optimizer)
            self.state = State.from_json(self.start.state)
        self.saved: Path | None = self.start.checkpoint
        before = self.start.checkpoint.parent if self.start.checkpoint else None
        self.log = RunLog(self.output_dir, self.state.step, before)
        self.config_file = self.output_dir / CONFIG
        self.config_file.write_text(config.to_yaml(), encoding="utf-8")

    def describe(self) -> list[str]:
        """What is going to happen, a line each."""
        config = self.config
        per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
        lines = [*self.start.notes]
        if self.start.checkpoint is not None:
            lines.append(f"going on from {self.start.checkpoint}, step {self.state.step}")
        for name, corpus in (("training", self.train_data), ("held-out", self.eval_data)):
            if corpus is not None:
                lines.append(f"{name} data: {'; '.join(corpus.stats.summary().splitlines())}")
        lines.append(
            f"{self.max_steps:,} steps of {per_step} samples, {self.windows.epoch_at(self.max_steps):.2f} epochs"
        )
        return lines


def _fit_out(model: Any, config: TrainConfig, device: torch.device) -> None:
    model.to(device)
    if config.activation_checkpointing:
        # transformers renamed the method in 5.23
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if config.patch:
        try:
            patch(model)
        except ValueError as error:
            raise ValueError(f"{error}. To train it with its own head: --patch false") from error
