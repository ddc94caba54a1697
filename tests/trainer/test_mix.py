"""Runs of several tasks: which model, what is logged and evaluated, what is said of them."""

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForPreTraining

from fastft.trainer import Trainer

from .conftest import SENTENCES, MakeTrainer, printed, write_records

SMALL = {"max_length": 48, "bf16": False, "on_empty": "drop", "logging_steps": 1}


@pytest.fixture
def mix(make_trainer: MakeTrainer, bert_dir: str, documents: str) -> Any:
    def make(*tasks: dict[str, Any], **changes: Any) -> Trainer:
        return make_trainer(**({"model": bert_dir, "train_data": documents, "tasks": list(tasks)} | SMALL | changes))

    return make


@pytest.mark.parametrize("order", [("mlm", "nsp", "clm"), ("nsp", "clm", "mlm")])
def test_masked_tokens_and_next_sentences_train_one_model(mix: Any, order: tuple[str, ...]) -> None:
    trainer = mix(*({"objective": name} for name in order), eval_fraction=0.3, task_schedule="joint", max_steps=20)
    assert isinstance(trainer.model, BertForPreTraining)
    report = trainer.train()
    assert set(report.eval_losses_after) == {"mlm", "clm", "nsp.prediction_logits", "nsp.seq_relationship_logits"}
    for name in ("mlm", "clm", "nsp.prediction_logits"):
        assert report.eval_losses_after[name] < report.eval_losses_before[name]


def test_weights_of_tasks_do_not_bend_the_logged_loss(mix: Any, tmp_path: Path) -> None:
    """The losses of the first step do not depend on weights, and the logged mean is that over the labels of all."""
    seen = []
    for number, weight in enumerate((1.0, 3.0, [[0, 0.01], [5, 1.0]])):
        trainer = mix(
            {"objective": "mlm", "weight": weight}, {"objective": "clm", "weight": 0.5},
            task_schedule="joint", output_dir=str(tmp_path / str(number)),
        )  # fmt: skip
        trainer.train_step()
        seen.append(trainer.state.recent)
    for meter in seen:
        assert meter.mean_loss == pytest.approx(seen[0].mean_loss, rel=1e-6)
        of_all = [sum(sums) for sums in zip(*meter.parts.values(), strict=True)]
        assert meter.mean_loss == pytest.approx(of_all[0] / of_all[1], rel=1e-6)


def test_perplexity_is_of_one_task_with_one_output(make_trainer: MakeTrainer, mix: Any, tmp_path: Path) -> None:
    one = make_trainer(eval_fraction=0.3, max_steps=1)
    found = one.train()
    assert found.perplexity_after == pytest.approx(math.exp(found.eval_loss_after))
    assert ", perplexity " in printed(one)
    several = [{"eval_fraction": 0.3, "max_steps": 1, "output_dir": str(tmp_path / str(i))} for i in range(2)]
    runs = [
        mix({"objective": "mlm"}, {"objective": "clm"}, **several[0]),
        mix({"objective": "nsp"}, **several[1]),
    ]
    for run in runs:
        report = run.train()
        assert report.eval_loss_after is not None
        assert report.perplexity_before is None
        assert report.perplexity_after is None
        assert not run.log.having("perplexity")
        assert ", perplexity " not in printed(run)
        assert "(perplexity " not in (run.output_dir / "report.txt").read_text()
        assert "evaluation loss" in (run.output_dir / "report.txt").read_text()
    last = runs[0].log.having("eval_loss")[-1]
    assert last["eval_loss"] == pytest.approx(sum(last["eval_losses"].values()) / 2)


def test_a_task_of_weight_zero_takes_no_step(mix: Any) -> None:
    trainer = mix({"objective": "mlm"}, {"objective": "clm", "weight": 0}, max_steps=3)
    trainer.train()
    assert [list(record["losses"]) for record in trainer.log.having("losses")] == [["mlm"]] * 3


def test_held_out_data_of_one_task(mix: Any) -> None:
    trainer = mix({"objective": "mlm", "eval_fraction": 0.2}, {"objective": "clm"}, eval_steps=2, max_steps=4)
    trainer.train()
    assert [record["step"] for record in trainer.log.having("eval_loss")] == [0, 2, 4]


@pytest.mark.parametrize(
    ("own", "changes", "words"),
    [
        ([{"objective": "clm", "packing": True}], {}, "4 steps of 6 rows, "),
        ([{"objective": "clm", "packing": True}, {"objective": "mlm"}], {}, "4 steps of 6 rows or samples, "),
        (
            [{"objective": "clm"}, {"objective": "mlm"}],
            {"task_schedule": "joint"},
            "4 steps of 6 samples of each task, ",
        ),
        ([{"objective": "clm"}, {"objective": "mlm"}], {}, "4 steps of 6 samples, "),
    ],
)
def test_says_what_a_step_is_counted_in(mix: Any, own: list[Any], changes: dict[str, Any], words: str) -> None:
    assert words in mix(*own, max_steps=4, **changes).describe()[-1]


def test_held_out_samples_longer_than_the_model_takes(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    write_records(long, [{"prompt": "a " * 100, "completion": "xyz " * 100}])
    with pytest.raises(ValueError, match=r"a held-out sample has \d+ tokens, but .* takes 128: lower max_length"):
        make_trainer(eval_data=str(long), max_length=1000)


def test_the_report_counts_what_was_left_out(make_trainer: MakeTrainer, bert_dir: str, tmp_path: Path) -> None:
    data, held_out = tmp_path / "data.jsonl", tmp_path / "held_out.jsonl"
    long = {"prompt": SENTENCES[0], "completion": " ".join(SENTENCES[:9])}
    short, empty = {"prompt": SENTENCES[0], "completion": SENTENCES[1]}, {"prompt": SENTENCES[0], "completion": ""}
    write_records(data, [short] * 3 + [long] * 2 + [empty] * 4)
    write_records(held_out, [short, long, empty, empty])
    report = make_trainer(model=bert_dir, train_data=str(data), eval_data=str(held_out), max_steps=1, **SMALL).train()
    assert (sum(report.train_dropped.values()), report.train_truncated) == (4, 2)
    assert (sum(report.eval_dropped.values()), report.eval_truncated) == (2, 1)
    [reason] = report.train_dropped
    text = " ".join((tmp_path / "run" / "report.txt").read_text().split())
    assert "2 training samples cut at max_length" in text
    assert "4 training records dropped: " in text
    assert "1 held-out samples cut at max_length" in text
    assert "2 held-out records dropped: " in text
    assert reason.split(":")[0] in text
