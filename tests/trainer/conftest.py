"""A Llama, a BERT and a T5 of two layers, tokenizers and some data, all small enough to be made for the tests."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForPreTraining,
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from fastft.trainer import TrainConfig, Trainer

COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "sun": "yellow"}
RECORDS = [
    {"prompt": f"{ask} the {thing}{'?' * (1 + n % 3)} ", "completion": f"the {thing} is {colour}" + " indeed" * (n % 4)}
    for n, ask in enumerate(("What colour has", "Tell me of", "Describe", "Now:"))
    for thing, colour in COLOURS.items()
]
SENTENCES = [f"the {thing} is {colour} and {n} more of it ." for thing, colour in COLOURS.items() for n in range(9)]
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip

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
def untied_dir(model_dir: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    model = LlamaForCausalLM.from_pretrained(model_dir)
    untied = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": False}))
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("untied")
    untied.load_state_dict({**model.state_dict(), "lm_head.weight": torch.randn(untied.lm_head.weight.shape) * 0.02})
    untied.save_pretrained(folder)
    for file in Path(model_dir).glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return str(folder)


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "colours.jsonl"
    write_records(path, RECORDS)
    return str(path)


@pytest.fixture(scope="session")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT with the heads for masked tokens and next sentences, and words for tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted(
        {word for text in [*SENTENCES, *(r["prompt"] + r["completion"] for r in RECORDS)] for word in split(text)}
    )
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    BertForPreTraining(BertConfig(vocab_size=len(tokenizer), **SMALL)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def split(text: str) -> list[str]:
    return [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)]


@pytest.fixture(scope="session")
def t5_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = ByT5Tokenizer()
    torch.manual_seed(0)
    size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, dropout_rate=0.0, **size)
    folder = tmp_path_factory.mktemp("t5")
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Texts of several sentences each."""
    path = tmp_path_factory.mktemp("documents") / "texts.jsonl"
    texts = [" ".join(SENTENCES[i : i + 6]) for i in range(0, len(SENTENCES), 3)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
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


def resume_alike(make_trainer: MakeTrainer, tmp_path: Path, stop_at: int, **course: Any) -> Trainer:
    """A run of its own, and one that is resumed from a checkpoint of another, end with the same bits. The first."""
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **course)
    make_trainer(save_steps=stop_at, **course).train()
    checkpoint = str(tmp_path / "run" / f"checkpoint-{stop_at}")
    rest = make_trainer(output_dir=str(tmp_path / "rest"), resume_from_checkpoint=checkpoint, **course)
    assert (whole.state.step, rest.state.step) == (0, stop_at)
    for run in (whole, rest):
        run.train()
        run.model.state_dict()  # catches up with every row
    assert_same(weights(whole), weights(rest))
    return whole


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
