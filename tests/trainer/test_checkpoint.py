import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
)

from fastft.trainer.optimizer import make_optimizers
from fastft.trainer.saving.checkpoint import DamagedCheckpoint, checkpoints, load_optimizers, read_state, save
from fastft.trainer.saving.whole import remove

from .conftest import SMALL, MakeTrainer, assert_same, weights


@pytest.fixture
def saved(make_trainer: MakeTrainer) -> Path:
    trainer = make_trainer(max_steps=2)
    trainer.train()
    assert trainer.saved is not None
    return trainer.saved


def test_loads_in_plain_transformers_with_equal_logits(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.train()
    model = AutoModelForCausalLM.from_pretrained(trainer.saved)
    tokenizer = AutoTokenizer.from_pretrained(trainer.saved)
    ids = torch.tensor([tokenizer("Describe the snow? ")["input_ids"]])
    trainer.model.eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, trainer.model(input_ids=ids).logits)


def test_layout(saved: Path) -> None:
    assert saved.name == "checkpoint-2"
    names = {path.name for path in saved.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "optimizer.safetensors"} <= names
    assert {"trainer_state.json", "manifest.json"} <= names
    state = read_state(saved)
    assert state["step"] == 2
    assert state["config"]["max_steps"] == 2
    assert not any(path.name.startswith(".") for path in saved.parent.iterdir())


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "trainer_state.json", "config.json"])
@pytest.mark.parametrize("harm", ["cut", "change", "remove"])
def test_a_damaged_file_is_refused_by_name(saved: Path, file: str, harm: str) -> None:
    path = saved / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] if harm == "cut" else content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    if harm == "remove":
        path.unlink()
    with pytest.raises(DamagedCheckpoint, match=rf"checkpoint-2: {file} "):
        read_state(saved)


@pytest.mark.parametrize("manifest", [None, "", "[]", '{"config.json": 3}', "{}"])
def test_a_missing_or_torn_manifest_is_refused(saved: Path, manifest: str | None) -> None:
    (saved / "manifest.json").unlink()
    if manifest is not None:
        (saved / "manifest.json").write_text(manifest)
    with pytest.raises(DamagedCheckpoint, match="checkpoint-2"):
        read_state(saved)


def test_no_such_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not found"):
        read_state(tmp_path / "checkpoint-7")


class FullDisk:
    def save_pretrained(self, folder: Path) -> None:
        raise OSError(28, "No space left on device")


def test_a_failed_save_leaves_the_others_whole_and_no_rest(make_trainer: MakeTrainer, saved: Path) -> None:
    before = json.loads((saved / "manifest.json").read_text())
    for step in (2, 3):
        with pytest.raises(OSError, match="No space left"):
            save(saved.parent, step, make_trainer(output_dir=str(saved.parent / "x")).model, FullDisk(), [], {})
        remove(saved.parent / "x")
    assert checkpoints(saved.parent) == [saved]
    assert read_state(saved)
    assert json.loads((saved / "manifest.json").read_text()) == before
    assert not list(saved.parent.glob(".*"))


def test_a_rest_of_a_killed_save_is_no_checkpoint_and_is_cleared(make_trainer: MakeTrainer, saved: Path) -> None:
    trainer = make_trainer(output_dir=str(saved.parent / "x"))
    rests = [saved.parent / name for name in (".checkpoint-9.draft", ".checkpoint-1.removed")]
    for rest in rests:
        rest.mkdir()
        (rest / "model.safetensors").write_text("half")
    assert checkpoints(saved.parent) == [saved]
    written = save(saved.parent, 9, trainer.model, trainer.tokenizer, trainer.optimizers, {})
    assert not any(rest.exists() for rest in rests)
    assert checkpoints(saved.parent) == [saved, written]
    assert read_state(written)["step"] == 9


def test_checkpoints_are_in_order_of_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-x", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert checkpoints(tmp_path / "nowhere") == []


def test_optimizer_state_returns_bit_for_bit(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=3)
    trainer.train()
    assert trainer.saved is not None
    fresh = make_optimizers(trainer.model, trainer.config, trainer.learning.ever())
    load_optimizers(trainer.saved, trainer.model, fresh)
    for parameter, state in trainer.optimizers[0].state.items():
        assert state.keys() == fresh[0].state[parameter].keys()
        assert all(torch.equal(state[key], fresh[0].state[parameter][key]) for key in state)


def test_a_checkpoint_of_the_model_alone_says_so(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=1, save_only_model=True)
    trainer.train()
    assert trainer.saved is not None
    assert not (trainer.saved / "optimizer.safetensors").exists()
    with pytest.raises(ValueError, match=r"save_only_model.*--model"):
        load_optimizers(trainer.saved, trainer.model, trainer.optimizers)


def test_an_optimizer_of_other_parameters_is_refused(make_trainer: MakeTrainer, saved: Path) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="which has no"):
        load_optimizers(saved, model, [torch.optim.AdamW(model.parameters())])


def test_parameters_without_gradients_start_without_state(
    make_trainer: MakeTrainer, bert_dir: str, tmp_path: Path
) -> None:
    """The pooler of an EncoderDecoderModel's encoder is one that is never used."""
    tokenizer = AutoTokenizer.from_pretrained(bert_dir)
    small = {**SMALL, "vocab_size": len(tokenizer)}
    model = EncoderDecoderModel(
        encoder=BertModel(BertConfig(**small)),
        decoder=BertLMHeadModel(BertConfig(**small, is_decoder=True, add_cross_attention=True)),
    )
    model.config.decoder_start_token_id, model.config.pad_token_id, model.config.eos_token_id = 2, 0, 3
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options: dict[str, Any] = {
        "model": str(tmp_path / "model"),
        "objective": "seq2seq",
        "max_length": 48,
        "max_steps": 4,
    }
    whole = make_trainer(**options, save_steps=2)
    whole.train()
    unused = [
        name for name, parameter in whole.model.named_parameters() if not whole.optimizers[0].state.get(parameter)
    ]
    assert "encoder.pooler.dense.weight" in unused
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    resumed = make_trainer(**options, output_dir=str(tmp_path / "again"), resume_from_checkpoint=checkpoint)
    resumed.train()
    assert_same(weights(whole), weights(resumed))
