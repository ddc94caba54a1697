"""PEFT: LoRA in attention, two trained rows of the input table, and a trained copy of the head, which stays fused.

`modules_to_save=["lm_head"]` is fused like the head itself. An adapter on the head (LoRA, or `trainable_token_indices`
of a tied table) is not; there, use `fastft.embedding.TrainableRows` for rows.
"""

import tempfile

import torch
from peft import LoraConfig, get_peft_model
from tiny import arguments, compare, llama, losses, samples
from transformers import Trainer

import fastft


def train(fused: bool) -> list[float]:
    torch.manual_seed(0)
    config = LoraConfig(
        r=8,
        target_modules=["q_proj", "v_proj"],
        trainable_token_indices={"embed_tokens": [1, 2]},
        modules_to_save=["lm_head"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(llama(), config)
    if fused:
        fastft.patch(model)
    with tempfile.TemporaryDirectory() as folder:
        return losses(Trainer(model, arguments(folder, gradient_accumulation_steps=2), train_dataset=samples()))


if __name__ == "__main__":
    compare(train)
