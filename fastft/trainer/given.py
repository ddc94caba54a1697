"""The tasks of a run as its configuration gives them: all that can be said of them before anything is loaded."""

import dataclasses
from typing import Any, NamedTuple

from fastft.data import Mask
from fastft.data.objectives import objective_class
from fastft.trainer.config import FIELDS, TrainConfig, unknown_key

# What a task of `tasks` may set for itself; everything else is the run's.
OWN = frozenset(name for name, field in FIELDS.items() if field.metadata["own"])
KEYS = ("name", "weight", "data", *sorted(OWN))
ENCODER_DECODER, TWO_HEADS = "AutoModelForSeq2SeqLM", "AutoModelForPreTraining"


class GivenTask(NamedTuple):
    """A task's name, its settings (the run's where it has none of its own), and its weight as it was written."""

    name: str
    config: TrainConfig
    weight: Any


def given_tasks(config: TrainConfig) -> list[GivenTask]:
    """The tasks of a run; one, named after its objective, where `tasks` is not given.

    Raises:
        ValueError: a task that cannot be meant, by its number; tasks that no single model can learn.
    """
    if not config.tasks:
        check_settings(config)
        return [GivenTask(config.objective, config, 1.0)]
    found: list[GivenTask] = []
    for number, given in enumerate(config.tasks):
        try:
            task = _read(given, config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"tasks: number {number}: {error}") from error
        if any(task.name == other.name for other in found):
            raise ValueError(f"tasks: two are called {task.name!r}; give each a name of its own")
        found.append(task)
    if config.eval_steps and not any(task.config.eval_data or task.config.eval_fraction for task in found):
        raise ValueError(
            f"eval_steps is {config.eval_steps}, but no task holds anything out: give eval_data or eval_fraction, to "
            "the run or to a task"
        )
    model_class(found)
    return found


def _read(given: dict[str, Any], config: TrainConfig) -> GivenTask:
    own = dict(given)
    wrong = [key for key in own if key not in KEYS]
    if wrong:
        raise ValueError(_wrong_key(wrong[0]))
    if "data" in own:
        if "train_data" in own:
            raise ValueError("data and train_data are two names of one setting: give one of them")
        own["train_data"] = own.pop("data")
    weight = own.pop("weight", 1.0)
    name = own.pop("name", None)
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ValueError(f"name is {name!r}; wanted a text that is not empty")
    merged = {field: getattr(config, field) for field in FIELDS} | {"tasks": None, "stages": None, "eval_steps": 0}
    if own.get("eval_data") is not None:
        merged["eval_fraction"] = 0.0
    if own.get("eval_fraction"):
        merged["eval_data"] = None
    task = TrainConfig(**merged | own)
    check_settings(task)
    return GivenTask(name or task.objective, task, weight)


def _wrong_key(key: Any) -> str:
    if key in FIELDS:
        return f"{key} is the run's, not a task's"
    about = unknown_key(key, KEYS)
    if ": " in about:
        return about
    return f"{about}; a task has name, weight, data, objective, and settings of its data, mask and objective"


def check_settings(config: TrainConfig) -> None:
    """Refuse what cannot be meant of a mask, or of packing.

    Raises:
        ValueError: names the key.
    """
    mask_of(config)
    if config.packing and not objective_class(config.objective).packs:
        raise ValueError(f"packing: {config.objective} cannot share rows between samples; set packing to false")


def mask_of(config: TrainConfig) -> Mask:
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(Mask)}
    return Mask(**{name: value for name, value in given.items() if value is not None})


def model_class(tasks: list[GivenTask]) -> str:
    """The class of transformers that learns all of the tasks: the first one's, or that with a head for the relation of
    two texts, where any of them has such a label: it has the head for tokens as well.

    Raises:
        ValueError: some want an encoder-decoder and others do not.
    """
    classes = {task.name: objective_class(task.config.objective).auto_class for task in tasks}
    of_two = [name for name, kind in classes.items() if kind == ENCODER_DECODER]
    others = [name for name in classes if name not in of_two]
    if of_two and others:
        raise ValueError(
            f"tasks: {of_two[0]!r} wants an encoder-decoder and {others[0]!r} a single stack, so no model can learn "
            "both: make two runs of them"
        )
    return TWO_HEADS if TWO_HEADS in classes.values() else next(iter(classes.values()))


def data_of(config: TrainConfig) -> str:
    """What a run learns from, in words."""
    sources = [task.get("data", task.get("train_data", config.train_data)) for task in config.tasks or [{}]]
    return " + ".join(dict.fromkeys(map(str, sources)))
