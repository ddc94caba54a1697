"""A Llama of two layers, its tokenizer and some data, all small enough to be made for the tests."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fastft.trainer import TrainConfig, Trainer

COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "sun": "yellow"}
RECORDS = [
    {"prompt": f"{ask} the {thing}{'?' * (1 + n % 3)} ", "completion": f"the {thing} is {colour}" + " indeed" * (n % 4)}
    for n, ask in enumerate(("What colour has", "Tell me of", "Describe", "Now:"))
    for thing, colour in COLOURS.items()
]

MakeConfig = Callable[..., TrainConfig]
MakeTrainer = Callable[..., Trainer]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights and dropout; the tokenizer has merges and an end token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [record["prompt"] + record["completion"] for record in RECORDS],
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            attention_dropout=0.1,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
    )
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "colours.jsonl"
    write_records(path, RECORDS)
    return str(path)


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def make_config(model_dir: str, data_file: str, tmp_path: Path) -> MakeConfig:
    """A config of a run of 6 steps that takes a second; keywords change it."""

    def make(**changes: Any) -> TrainConfig:
        small: dict[str, Any] = {
            "model": model_dir,
            "train_data": data_file,
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 3,
            "gradient_accumulation_steps": 2,
            "max_length": 64,
            "max_steps": 6,
            "learning_rate": 3e-3,
            "logging_steps": 2,
            "num_generations": 0,
            "cache": False,
        }
        return TrainConfig(**(small | changes))

    return make


@pytest.fixture
def make_trainer(make_config: MakeConfig) -> MakeTrainer:
    """A trainer that prints to `trainer.console.file`."""

    def make(**changes: Any) -> Trainer:
        return Trainer(make_config(**changes), Console(file=io.StringIO(), width=100))

    return make


def printed(trainer: Trainer) -> str:
    file = trainer.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
