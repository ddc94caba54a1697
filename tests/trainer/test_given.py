"""What the configuration of tasks alone tells, before a tokenizer, data or weights are loaded."""

import re
from pathlib import Path
from typing import Any

import pytest

from fastft.trainer.config import TrainConfig
from fastft.trainer.given import given_tasks, model_class

from .conftest import MakeTrainer


def config(tasks: list[Any], **changes: Any) -> TrainConfig:
    return TrainConfig(**({"model": "m", "train_data": "d", "max_steps": 4, "tasks": tasks} | changes))


def test_a_task_has_the_settings_of_the_run_but_its_own() -> None:
    first, second = given_tasks(
        config([{"objective": "mlm", "data": "e"}, {"name": "x", "weight": 0.5, "max_length": 9}], max_length=7)
    )
    assert (first.name, first.config.train_data, first.config.max_length, first.weight) == ("mlm", "e", 7, 1.0)
    assert (second.name, second.config.objective, second.config.train_data) == ("x", "clm", "d")
    assert (second.config.max_length, second.weight) == (9, 0.5)


def test_own_held_out_data_replaces_the_runs() -> None:
    own, run = given_tasks(config([{"eval_data": "e"}, {"name": "b"}], eval_fraction=0.1))
    assert (own.config.eval_data, own.config.eval_fraction) == ("e", 0.0)
    assert (run.config.eval_data, run.config.eval_fraction) == (None, 0.1)
    own, run = given_tasks(config([{"eval_fraction": 0.2}, {"name": "b", "eval_fraction": 0}], eval_data="e"))
    assert (own.config.eval_data, own.config.eval_fraction) == (None, 0.2)
    assert (run.config.eval_data, run.config.eval_fraction) == ("e", 0.0)
    with pytest.raises(ValueError, match="number 0: eval_data and eval_fraction both name held-out data"):
        given_tasks(config([{"eval_fraction": 0.2, "eval_data": "e"}]))


def test_evaluations_want_one_task_that_holds_something_out() -> None:
    first, second = given_tasks(config([{"eval_fraction": 0.2}, {"objective": "mlm"}], eval_steps=2))
    assert (first.config.eval_fraction, second.config.eval_fraction) == (0.2, 0.0)
    with pytest.raises(ValueError, match="eval_steps is 2, but no task holds anything out: give eval_data or"):
        given_tasks(config([{}, {"objective": "mlm"}], eval_steps=2))


@pytest.mark.parametrize(
    ("objectives", "name"),
    [
        (["clm"], "AutoModelForCausalLM"),
        (["mlm", "clm"], "AutoModelForMaskedLM"),
        (["clm", "mlm"], "AutoModelForCausalLM"),
        (["mlm", "nsp"], "AutoModelForPreTraining"),
        (["clm", "mlm", "sop"], "AutoModelForPreTraining"),
        (["seq2seq", "ul2"], "AutoModelForSeq2SeqLM"),
    ],
)
def test_one_class_serves_all_tasks(objectives: list[str], name: str) -> None:
    assert model_class(given_tasks(config([{"objective": objective} for objective in objectives]))) == name


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"tasks": [{"objective": "mlm"}, {"objective": "seq2seq"}]},
        "'seq2seq' wants an encoder-decoder and 'mlm' a sing",
    ),
    ({"tasks": [{"objective": "mlmx"}]}, "number 0: objective is 'mlmx'; wanted clm or"),
    ({"tasks": [{}, {"objective": 5}]}, "number 1: objective is 5; wanted clm or"),
    ({"tasks": [{}, {"objective": ["mlm"]}]}, "number 1: objective is ['mlm']; wanted clm or"),
    ({"tasks": [{}, {"objective": None}]}, "number 1: objective is None; wanted clm or"),
    ({"tasks": [{"name": 5}]}, "number 0: name is 5; wanted a text that is not empty"),
    ({"tasks": [{"name": " "}]}, "number 0: name is ' '; wanted a text that is not empty"),
    ({"tasks": [{"data": "a", "train_data": "b"}]}, "number 0: data and train_data are two names of one setting"),
    ({"tasks": [{"weight": True}]}, "the weight of 'clm' is True; wanted a number >= 0"),
    ({"tasks": [{"weight": [0, 1, 4, 2]}]}, "the weight of 'clm' is [0, 1, 4, 2]; wanted a number >= 0, or points"),
    ({"tasks": [{"weight": None}]}, "the weight of 'clm' is None"),
    ({"tasks": [{"learning_rate": 1.0}]}, "number 0: learning_rate is the run's, not a task's"),
    ({"tasks": [{"mlm_prob": 1.0}]}, "number 0: unknown key 'mlm_prob': did you mean 'mlm_probability' (mlm,"),
    ({"tasks": [{"wieght": 1.0}]}, "number 0: unknown key 'wieght': did you mean 'weight'?"),
    ({"tasks": [{"lr": 1.0}]}, "number 0: unknown key 'lr'; a task has name, weight, data"),
    ({"tasks": [{"zzzz": 1.0}]}, "number 0: unknown key 'zzzz'; a task has name, weight, data"),
    ({"tasks": [{"train_on_prompt": True}]}, "number 0: unknown key 'train_on_prompt': `train_on_prompt: true` is"),
    ({"tasks": [{"packing": True, "objective": "sop"}]}, "number 0: packing: sop cannot share rows"),
    ({"tasks": [{}, {"objective": "mlm", "keep_spans": "("}]}, "number 1: keep_spans: '(' is no regular expression"),
    ({"tasks": [{}], "train_data": None}, "number 0: train_data is not given"),
    ({"keep_spans": "("}, "keep_spans: '(' is no regular expression"),
    ({"mask": "none", "train_turns": "last"}, "train_turns: 'last' masks the turns before it"),
    ({"packing": True, "objective": "nsp"}, "packing: nsp cannot share rows"),
    ({"stages": [{"steps": 2, "tasks": ["mlx"]}], "max_steps": -1}, "has task 'mlx'; the tasks are clm"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_is_refused_before_anything_is_loaded_or_made(
    make_trainer: MakeTrainer, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make_trainer(model="there is no such model", **changes)
    assert not (tmp_path / "run").exists()
    assert len(str(error.value)) < 400
