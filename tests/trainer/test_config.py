import dataclasses
import re
from typing import Any

import pytest
import yaml

from fastft.trainer.config import FIELDS, TrainConfig, unknown_key
from fastft.trainer.fields import OTHER_NAMES, SWITCHES, type_name


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**({"model": "m", "train_data": "d"} | changes))


def test_is_flat_small_and_explained() -> None:
    assert len(FIELDS) <= 90
    assert all(field.metadata["help"] for field in FIELDS.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learning_rate": 1e-05, "bf16": True, "max_train_samples": 7},
        {"model": "a: b # c", "resume_from_checkpoint": "runs/x/checkpoint-3", "eval_data": "x" * 300},
    ],
)
def test_yaml_round_trip(changes: dict[str, Any]) -> None:
    text = config(**changes).to_yaml()
    assert TrainConfig(**yaml.safe_load(text)) == config(**changes)
    assert len(text.splitlines()) == len(FIELDS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.0}, ["learning_rate is 0.0", "> 0"]),
        ({"learning_rate": float("nan")}, ["learning_rate is nan"]),
        ({"eval_fraction": 1.0}, ["eval_fraction is 1.0", "[0, 1)"]),
        ({"per_device_train_batch_size": 0}, ["per_device_train_batch_size is 0", ">= 1"]),
        ({"max_steps": 0}, ["max_steps is 0", "-1"]),
        ({"max_steps": -2}, ["max_steps is -2"]),
        ({"train_data": ""}, ["train_data is ''", "not empty"]),
        ({"save_total_limit": 0}, ["save_total_limit is 0"]),
        ({"eval_data": "x", "eval_fraction": 0.1}, ["eval_data", "eval_fraction", "one of them"]),
        ({"tasks": []}, ["tasks is []", "null, or a list of tasks with keys and values"]),
        ({"stages": []}, ["stages is []", "null, or a list of stages"]),
        ({"eval_steps": 5}, ["eval_steps is 5", "eval_data", "eval_fraction"]),
        ({"early_stopping_patience": 2}, ["early_stopping_patience is 2", "give eval_steps"]),
        ({"load_best_model_at_end": True}, ["load_best_model_at_end", "give eval_steps"]),
        ({"train_rows": ["a"], "distributed": "fsdp"}, ["train_rows", "ddp"]),
        ({"dropout": 1.0}, ["dropout is 1.0", "[0, 1)"]),
        ({"spike_factor": 1.0}, ["spike_factor is 1.0", "> 1"]),
        ({"report_to": ["mlflow"]}, ["report_to is ['mlflow']", "tensorboard, trackio, wandb"]),
    ],
)
def test_refuses_values_that_cannot_be_meant(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        config(**changes)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_steps": 1.5}, ["max_steps is 1.5", "whole number"]),
        ({"max_steps": "3"}, ["max_steps is '3'", "whole number"]),
        (
            {"tasks": ["mlm"]},
            ["tasks is ['mlm']", "a list of tasks with keys and values, such as [{objective: mlm, data"],
        ),
        ({"tasks": "mlm"}, ["tasks is 'mlm'", "a list of tasks"]),
        ({"stages": "mlm"}, ["stages is 'mlm'", "a list of stages with keys and values, such as [{steps: 1000"]),
        ({"seed": True}, ["seed is True", "whole number"]),
        ({"bf16": "yes"}, ["bf16 is 'yes'", "true or false or null"]),
        ({"lr_scheduler_type": "cosin"}, ["lr_scheduler_type is 'cosin'", "linear or cosine or constant"]),
        ({"resume_from_checkpoint": 3}, ["resume_from_checkpoint is 3", "true or false or a text"]),
    ],
)
def test_refuses_types_that_do_not_fit(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(TypeError) as error:
        config(**changes)
    assert all(word in str(error.value) for word in words), error.value


def test_takes_whole_numbers_where_fractions_fit() -> None:
    assert config(num_train_epochs=1, warmup_steps=10).num_train_epochs == 1


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learing_rate", "learning_rate"),
        ("batch_size", "per_device_train_batch_size"),
        ("cutoff_len", "max_length"),
        ("gradient_checkpointing", "activation_checkpointing"),
        ("save_step", "save_steps"),
    ],
)
def test_unknown_key_names_the_nearest(key: str, near: str) -> None:
    assert f"unknown key {key!r}: did you mean {near!r}" in unknown_key(key)


@pytest.mark.parametrize(
    ("key", "on", "off"),
    [
        ("train_on_prompt", "`mask: none`", "the default `mask: prompt`"),
        ("mask_prompt", "the default `mask: prompt`", "`mask: none`"),
        ("mask_history", "`train_turns: last`", "the default `train_turns: all`"),
        ("overwrite_cache", "`cache: false`", "the default `cache: true`"),
    ],
)
def test_switches_of_others_are_told_for_both_values(key: str, on: str, off: str) -> None:
    assert unknown_key(key) == f"unknown key {key!r}: `{key}: true` is {on}, false is {off}"


def test_every_name_of_others_leads_to_a_field_and_value() -> None:
    assert set(OTHER_NAMES.values()) <= set(FIELDS)
    assert not (set(OTHER_NAMES) | set(SWITCHES)) & set(FIELDS)
    for setting in (setting for pair in SWITCHES.values() for setting in pair):
        assert config(**yaml.safe_load(setting))


def test_unknown_key_without_a_near_one_lists_all() -> None:
    assert ", ".join(FIELDS) in unknown_key("zzzz")


def test_type_names() -> None:
    assert type_name(int | None) == "a whole number or null"
