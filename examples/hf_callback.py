"""transformers.Trainer with a causal model, which counts labels itself: a callback patches it for training.

Evaluation in between makes no logits either, since nothing reads them (Trainer's `prediction_loss_only`).
"""

import tempfile

from tiny import STEPS, arguments, compare, llama, losses, samples
from transformers import Trainer

from fastft.hf import PatchCallback


def train(fused: bool) -> list[float]:
    data = samples()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            llama(),
            arguments(folder, eval_strategy="steps", eval_steps=STEPS // 2),
            train_dataset=data,
            eval_dataset=data[:8],
            callbacks=[PatchCallback()] if fused else None,
        )
        trained = losses(trainer)
    return [*trained, *(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)]


if __name__ == "__main__":
    compare(train)
