"""A loop with accelerate: `patch` before `prepare`, and the labels of the whole window as `num_items_in_batch`.

The same gradient, however a window is split: accelerate divides by the number of micro-batches, which is taken back.
"""

import torch
from accelerate import Accelerator
from tiny import BATCH, STEPS, compare, llama, samples
from torch.utils.data import DataLoader

import fastft

WINDOW = 2  # micro-batches


def train(fused: bool) -> list[float]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=WINDOW)
    model = llama()
    if fused:
        fastft.patch(model)
    rows = [{name: torch.tensor(ids) for name, ids in sample.items()} for sample in samples(WINDOW * STEPS * BATCH)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=BATCH))
    batches, losses = iter(loader), []
    for _ in range(STEPS):
        window = [next(batches) for _ in range(WINDOW)]
        labels = sum((batch["labels"][:, 1:] != -100).sum() for batch in window)
        labels = accelerator.reduce(labels)  # of all processes
        total = 0.0
        for batch in window:
            with accelerator.accumulate(model):
                loss = model(**batch, num_items_in_batch=labels).loss
                accelerator.backward(loss * WINDOW * accelerator.num_processes)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            total += accelerator.reduce(loss.detach()).item()
        losses.append(total)
    return losses


if __name__ == "__main__":
    compare(train)
