"""transformers.Trainer with an embedding whose step costs what the touched rows cost, clipped, and resumed half-way.

The table's gradient is sparse by rows, for `SparseAdamW`; the rest goes to torch's AdamW. Losses are those of AdamW for
all, since `SparseAdamW` leaves in each row what dense steps would have.
"""

import tempfile
from typing import Any

import torch
from tiny import STEPS, arguments, compare, llama, losses, samples
from transformers import Trainer, get_linear_schedule_with_warmup

import fastft
from fastft.embedding import SparseEmbedding
from fastft.hf import RowsAndRest, clip_rows
from fastft.optim import SparseAdamW

ADAM: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.01}


def make(folder: str, fused: bool, **options: Any) -> Trainer:
    model = llama()
    if fused:
        table = SparseEmbedding.from_embedding(model.get_input_embeddings())
        fastft.patch(model).set_input_embeddings(table)
        rest = [p for p in model.parameters() if p is not table.weight]
        optimizer: Any = RowsAndRest(SparseAdamW([table.weight], **ADAM), torch.optim.AdamW(rest, **ADAM))
    else:
        optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, STEPS)
    clipped = arguments(folder, max_grad_norm=0.5, save_strategy="steps", save_steps=STEPS // 2, **options)
    trainer = Trainer(model, clipped, train_dataset=samples(), optimizers=(optimizer, schedule))
    if fused:
        clip_rows(trainer.accelerator)  # torch's own refuses sparse gradients
    return trainer


def train(fused: bool) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        losses(make(folder, fused, max_steps=STEPS // 2))  # stops here, and another process goes on
        return losses(make(folder, fused), resume_from_checkpoint=True)


if __name__ == "__main__":
    compare(train)
