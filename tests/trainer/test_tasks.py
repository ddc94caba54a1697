"""Every objective through the trainer, and several of them in one run."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM, BertForPreTraining, BertLMHeadModel

from fastft.data import OBJECTIVES, Mask
from fastft.trainer.config import FIELD_TYPES, FIELDS
from fastft.trainer.given import OWN

from .conftest import MakeTrainer, assert_same, printed, weights

RUN = {"max_steps": 30, "learning_rate": 1e-2, "max_length": 48, "eval_fraction": 0.2, "bf16": False}


@pytest.mark.parametrize("objective", ["clm", "prefix_lm"])
@pytest.mark.parametrize("packing", [False, True])
def test_causal_models_learn(make_trainer: MakeTrainer, objective: str, packing: bool) -> None:
    report = make_trainer(objective=objective, packing=packing, **(RUN | {"max_length": 64})).train()
    assert report.eval_loss_after < 0.6 * report.eval_loss_before


@pytest.mark.parametrize(
    ("objective", "extra"),
    [
        ("mlm", {}),
        ("mlm", {"packing": True, "mlm_masking": "whole_word"}),
        ("mlm", {"mlm_masking": "span", "mlm_probability": 0.3}),
        ("clm", {}),
        ("nsp", {}),
    ],
)
def test_a_bert_learns(
    make_trainer: MakeTrainer, bert_dir: str, documents: str, objective: str, extra: dict[str, Any]
) -> None:
    trainer = make_trainer(model=bert_dir, objective=objective, train_data=documents, **RUN, **extra)
    kinds = {"mlm": BertForMaskedLM, "clm": BertLMHeadModel, "nsp": BertForPreTraining}
    assert type(trainer.model) is kinds[objective]
    report = trainer.train()
    assert report.eval_loss_after < 0.8 * report.eval_loss_before
    assert set(report.eval_losses_after) == (
        {"prediction_logits", "seq_relationship_logits"} if objective == "nsp" else set()
    )


@pytest.mark.parametrize("objective", ["seq2seq", "span_corruption", "ul2"])
def test_an_encoder_decoder_learns(make_trainer: MakeTrainer, t5_dir: str, documents: str, objective: str) -> None:
    data = {} if objective == "seq2seq" else {"train_data": documents}
    report = make_trainer(
        model=t5_dir, objective=objective, num_generations=1, generation_max_new_tokens=8, eval_generations=3,
        **(RUN | {"max_length": 64}), **data,
    ).train()  # fmt: skip
    assert report.eval_loss_after < 0.8 * report.eval_loss_before
    assert (report.error_rate_after is not None) == (objective == "seq2seq")


def turns(bert_dir: str, documents: str, **changes: Any) -> dict[str, Any]:
    own = [
        {"objective": "mlm", "weight": [[0, 1.0], [7, 0.5]], "mlm_probability": 0.3},
        {"objective": "clm", "name": "left-to-right", "weight": 0.5, "packing": True},
    ]
    return {"model": bert_dir, "train_data": documents, "tasks": own, **RUN, **changes}


@pytest.mark.parametrize("schedule", ["alternate", "proportional", "joint"])
def test_several_tasks_learn_and_are_logged_apart(
    make_trainer: MakeTrainer, bert_dir: str, documents: str, schedule: str
) -> None:
    trainer = make_trainer(**turns(bert_dir, documents, task_schedule=schedule, logging_steps=10))
    report = trainer.train()
    for name in ("mlm", "left-to-right"):
        assert report.eval_losses_after[name] < 0.8 * report.eval_losses_before[name]
    assert set(trainer.log.having("losses")[-1]["losses"]) == {"mlm", "left-to-right"}
    assert "left-to-right: objective clm" in printed(trainer)
    assert report.objective == "mlm + clm"


def test_a_joint_gradient_is_the_weighted_sum(
    make_trainer: MakeTrainer, bert_dir: str, documents: str, tmp_path: Path
) -> None:
    def gradient(name: str, **changes: Any) -> list[torch.Tensor]:
        trainer = make_trainer(
            **turns(bert_dir, documents, output_dir=str(tmp_path / name), max_grad_norm=0.0, **changes)
        )
        trainer.model.config.hidden_dropout_prob = 0.0
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        found: list[torch.Tensor] = []
        trainer.optimizers[0].register_step_pre_hook(
            lambda *_: found.extend(p.grad.clone() for p in trainer.model.parameters())
        )
        trainer.train_step()
        return found

    both = gradient("both", task_schedule="joint")
    own = turns(bert_dir, documents)["tasks"]
    alone = [gradient(f"{i}", tasks=[task | {"weight": 1.0}]) for i, task in enumerate(own)]
    for whole, mlm, clm in zip(both, *alone, strict=True):
        torch.testing.assert_close(whole, 1.0 * mlm + 0.5 * clm, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", ["proportional", "joint"])
@pytest.mark.parametrize("cut", [2, 5])
def test_a_resumed_mix_is_the_uninterrupted_one(
    make_trainer: MakeTrainer, bert_dir: str, documents: str, tmp_path: Path, schedule: str, cut: int
) -> None:
    """With dynamic masks, packing, dropout, changing weights."""
    options = turns(bert_dir, documents, task_schedule=schedule, max_steps=7, save_steps=1, eval_fraction=0.0)
    whole = make_trainer(**options)
    whole.train()
    checkpoint = str(tmp_path / "run" / f"checkpoint-{cut}")
    resumed = make_trainer(**options | {"output_dir": str(tmp_path / "again"), "resume_from_checkpoint": checkpoint})
    resumed.train()
    assert_same(weights(whole), weights(resumed))


def test_stages_of_one_run(make_trainer: MakeTrainer, bert_dir: str, documents: str) -> None:
    stages = [{"steps": 3, "tasks": ["mlm"]}, {"steps": 4, "tasks": ["left-to-right"], "restart": True}]
    trainer = make_trainer(**turns(bert_dir, documents, stages=stages, max_steps=-1, logging_steps=1))
    trainer.train()
    assert [list(record["losses"]) for record in trainer.log.having("losses")] == [["mlm"]] * 3 + [
        ["left-to-right"]
    ] * 4
    rates = [record["learning_rate"] for record in trainer.log.having("losses")]
    assert rates[3] == RUN["learning_rate"]
    assert rates[2] < rates[0]


@pytest.mark.parametrize(
    ("tasks_given", "message"),
    [
        ([{"objective": "mlm", "learning_rate": 1.0}], "number 0: learning_rate is the run's, not a task's"),
        ([{"objective": "mlm", "mlm_prob": 0.3}], "number 0: unknown key 'mlm_prob': did you mean 'mlm_probability'"),
        ([{"objective": "mlm"}, {"objective": "mlm"}], "two are called 'mlm'; give each a name of its own"),
        ([{"objective": "mlm"}, {"objective": "mln"}], "number 1: objective is 'mln'; wanted clm or"),
        ([{"objective": "mlm", "weight": -1}], "the weight of 'mlm' is -1"),
        ([{"objective": "nsp", "packing": True}], "packing: nsp cannot share rows"),
    ],
)
def test_tasks_that_cannot_be_meant(
    make_trainer: MakeTrainer, bert_dir: str, documents: str, tasks_given: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_trainer(**turns(bert_dir, documents, tasks=tasks_given))


def test_what_a_task_may_set_is_of_its_data() -> None:
    assert {"objective", "train_data", "mask", "max_length", "mlm_probability"} <= OWN
    assert not {"model", "learning_rate", "seed", "output_dir", "tasks"} & OWN


def test_the_configuration_has_every_objective_and_option_with_its_default() -> None:
    assert set(typing.get_args(FIELD_TYPES["objective"])) == set(OBJECTIVES)
    for kind in (*OBJECTIVES.values(), Mask):
        for field in dataclasses.fields(kind):
            if field.name in ("tokenizer", "span_weights"):  # no default, and one that is a mapping
                continue
            assert field.name in FIELDS, f"{kind.__name__}.{field.name} cannot be set"
            assert field.default == FIELDS[field.name].default, field.name
            assert field.name in OWN
