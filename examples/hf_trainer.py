"""transformers.Trainer with a masked model: one argument makes its loss fused, and exact under accumulation.

By itself Trainer adds up the means of BERT's micro-batches, whatever their numbers of labels; `trainer_loss` divides by
the labels of the window. What it is compared with has the same sum, over the model's full logits.
"""

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from tiny import BATCH, STEPS, arguments, compare, losses, samples
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, Trainer

from fastft.hf import trainer_loss
from fastft.hf.pretrained import load_tokenizer


def unfused_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
    return F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum") / num_items_in_batch


def train(fused: bool) -> list[float]:
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForMaskedLM(BertConfig(**size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    collator = DataCollatorForLanguageModeling(load_tokenizer("builtin:minilm"), mlm_probability=0.15, seed=0)
    data = [{"input_ids": sample["input_ids"]} for sample in samples(2 * STEPS * BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            arguments(folder, gradient_accumulation_steps=2),
            collator,
            data,
            compute_loss_func=trainer_loss(model) if fused else unfused_loss,
        )
        return losses(trainer)


if __name__ == "__main__":
    compare(train)
