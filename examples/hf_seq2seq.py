"""Seq2SeqTrainer with a T5 that reads and writes bytes: functions in, their docstrings out.

Given `compute_loss_func`, Trainer takes the labels out of the batch, so that the collator has to make the decoder's
inputs of them: `DataCollatorForSeq2Seq(tokenizer, model=model)`. Without, T5 stops, and BART would learn nonsense.
"""

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from tiny import BATCH, STEPS, arguments, compare, losses
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from fastft.data.docstrings import folder, pairs
from fastft.hf import trainer_loss
from fastft.hf.pretrained import load


def unfused_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
    return F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum") / num_items_in_batch


def train(fused: bool) -> list[float]:
    model, tokenizer = load("builtin:byt5-tiny", torch.float32, "AutoModelForSeq2SeqLM")
    texts = pairs(folder() / "asyncio")[: STEPS * BATCH]
    data = [tokenizer(p.prompt[:96], text_target=p.completion[:48]) for p in texts]
    with tempfile.TemporaryDirectory() as place:
        trainer = Seq2SeqTrainer(
            model,
            arguments(place, Seq2SeqTrainingArguments, per_device_train_batch_size=2, gradient_accumulation_steps=2),
            DataCollatorForSeq2Seq(tokenizer, model=model),
            data,
            compute_loss_func=trainer_loss(model) if fused else unfused_loss,
        )
        return losses(trainer)


if __name__ == "__main__":
    compare(train)
