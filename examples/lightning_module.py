"""Lightning: patch the model in `configure_model`; everything else of the module stays as it is.

Lightning divides each micro-batch's loss by `accumulate_grad_batches`, whatever its labels. Where windows have several
micro-batches, give the model `num_items_in_batch` (labels of the window / accumulate_grad_batches), or use one.
"""

import logging
import warnings
from typing import Any

import lightning as L
import torch
from tiny import BATCH, STEPS, compare, llama, samples
from torch.utils.data import DataLoader

import fastft

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class Model(L.LightningModule):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.model, self.losses = fused, llama(), []

    def configure_model(self) -> None:
        if self.fused:
            fastft.patch(self.model)

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(fused: bool) -> list[float]:
    rows = [{name: torch.tensor(ids) for name, ids in sample.items()} for sample in samples()]
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    module = Model(fused).train()
    trainer = L.Trainer(max_steps=STEPS, accelerator="cpu", gradient_clip_val=1.0, **quiet)
    trainer.fit(module, DataLoader(rows, batch_size=BATCH))
    return module.losses


if __name__ == "__main__":
    compare(train)
