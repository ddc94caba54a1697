"""What the examples share: a tiny model, a little real text, and two runs side by side."""

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainingArguments

from fastft.data.docstrings import folder, pairs
from fastft.hf.pretrained import load_tokenizer
from fastft.memory import memory_now, peak_memory, reset_peak_memory

STEPS, BATCH, LENGTH = 20, 4, 128
CPU = torch.device("cpu")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def llama(vocab: int = 30522) -> Any:
    """4 M parameters, nearly all of them embedding and head, from random numbers: always the same."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=False, max_position_embeddings=LENGTH,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def samples(count: int = STEPS * BATCH) -> list[dict[str, list[int]]]:
    """Functions of Python's asyncio, and their docstrings, the only text with labels."""
    tokenizer = load_tokenizer("builtin:minilm")
    made = []
    for pair in pairs(folder() / "asyncio"):
        prompt = tokenizer(pair.prompt, add_special_tokens=False)["input_ids"][: LENGTH // 2]
        answer = tokenizer(pair.completion, add_special_tokens=False)["input_ids"][: LENGTH // 2]
        pad = LENGTH - len(prompt) - len(answer)
        made.append({
            "input_ids": [*prompt, *answer, *[tokenizer.pad_token_id] * pad],
            "attention_mask": [1] * (LENGTH - pad) + [0] * pad,
            "labels": [-100] * len(prompt) + answer + [-100] * pad,
        })  # fmt: skip
    return (made * (1 + count // len(made)))[:count]


def arguments(folder: str, kind: type[TrainingArguments] = TrainingArguments, **options: Any) -> Any:
    """Of a quiet run of 20 steps that logs each; `kind`: what the trainer wants."""
    quiet: dict[str, Any] = {
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_nan_inf_filter": False,
    }
    run = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "learning_rate": 1e-3, "logging_steps": 1}
    return kind(folder, **{**quiet, **run, "use_cpu": True, **options})


def losses(trainer: Any, **options: Any) -> list[float]:
    """Train with a transformers Trainer; the loss of each step."""
    trainer.remove_callback(PrinterCallback)
    trainer.train(**options)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def compare(train: Callable[[bool], list[float]]) -> tuple[list[float], list[float]]:
    """Losses of `train(False)`, the library as it is, and of `train(True)`, with fastft; prints both and their cost."""
    train(True)  # what only the first run pays, imports and tokenizing, counts for neither
    runs = []
    for name, fused in (("as it is", False), ("fastft", True)):
        gc.collect()
        before = memory_now(CPU)
        reset_peak_memory(CPU)
        start = time.perf_counter()
        runs.append(train(fused))
        seconds, peak = time.perf_counter() - start, peak_memory(CPU) - before
        print(f"{name:>8}: {seconds:5.1f} s, {peak / 1e6:5.0f} MB, losses " + " ".join(f"{x:.4f}" for x in runs[-1]))
    return runs[0], runs[1]
