"""TRL's SFTTrainer: `FusedSFTTrainer` takes its place. Entropy and token accuracy come from the loss's own pass.

TRL has a chunked head of its own: on a GPU it too leaves out the tokens without a label, on a CPU it does not.
"""

import tempfile

from datasets import Dataset, disable_progress_bars
from tiny import arguments, compare, llama, losses, samples
from trl import SFTConfig, SFTTrainer

from fastft.hf.pretrained import load_tokenizer
from fastft.hf.trl import FusedSFTTrainer

disable_progress_bars()


def train(fused: bool) -> list[float]:
    settings = {"dataset_kwargs": {"skip_prepare_dataset": True}, "gradient_checkpointing": False, "bf16": False}
    with tempfile.TemporaryDirectory() as folder:
        trainer = (FusedSFTTrainer if fused else SFTTrainer)(
            llama(),
            arguments(folder, SFTConfig, **settings),
            train_dataset=Dataset.from_list(samples()),
            processing_class=load_tokenizer("builtin:minilm"),
        )
        trained = losses(trainer)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [*trained, *(entry["entropy"] for entry in logged), *(entry["mean_token_accuracy"] for entry in logged)]


if __name__ == "__main__":
    compare(train)
