"""`FusedSFTTrainer`: TRL's losses, metrics and refusals, without its head."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, model_and_batch

from fastft.hf import LazyLogits

trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'fastft[examples]'")
datasets = pytest.importorskip("datasets")
FusedSFTTrainer = pytest.importorskip("fastft.hf.trl").FusedSFTTrainer
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")


def tokenizer() -> Any:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(VOCAB)}, unk_token="3"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, pad_token="0", eos_token="2", unk_token="3")


def rows() -> Any:
    torch.manual_seed(0)
    made = []
    for length in range(4, 12):
        ids = torch.randint(5, VOCAB, (length,)).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return datasets.Dataset.from_list(made)


def trainer(kind: Any, folder: Path, name: str = "llama", **options: Any) -> Any:
    model, _ = model_and_batch(name)
    settings: dict[str, Any] = {
        "max_steps": 3, "logging_steps": 1, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "dataset_kwargs": {"skip_prepare_dataset": True}, "learning_rate": 1e-2,
        "eval_strategy": "steps", "eval_steps": 3,
    }  # fmt: skip
    arguments = trl.SFTConfig(str(folder), **{**settings, **options})
    data = rows()
    return kind(model, arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer())


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_losses_and_metrics_are_trls(
    name: str, loss_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = []
    for kind in (trl.SFTTrainer, FusedSFTTrainer):
        made = trainer(kind, tmp_path, name, loss_type=loss_type)
        if kind is FusedSFTTrainer:

            def fail(*args: Any) -> None:
                raise AssertionError("the logits were materialized")

            monkeypatch.setattr(LazyLogits, "_replay", fail)
        made.train()
        logs.append(made.state.log_history)
    keys = ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm")
    keys += tuple(f"eval_{key}" for key in keys[:-1])
    want, got = ([entry[key] for entry in log for key in keys if key in entry] for log in logs)
    assert len(want) == 3 * 5 + 4
    assert got == pytest.approx(want, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("options", [{"label_smoothing_factor": 0.1}], ids=["smoothing"])
def test_what_it_leaves_to_trl(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"FusedSFTTrainer does not take label_smoothing_factor: use trl\.SFTTrainer"):
        trainer(FusedSFTTrainer, tmp_path, **options)
