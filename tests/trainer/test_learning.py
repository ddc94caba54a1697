from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from fastft.embedding import TrainableRows
from fastft.trainer.learning import Learning, names_of

from .conftest import MakeTrainer, resume_alike, weights


@pytest.fixture
def model(model_dir: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir)


def learning_at(learning: Learning, model: nn.Module, step: int) -> set[str]:
    learning.apply(step)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_everything_learns_by_default(model: Any) -> None:
    learning = Learning(model, [], None, 10)
    assert learning_at(learning, model, 0) == {name for name, _ in model.named_parameters()}
    assert not any(learning.apply(step) for step in range(10))


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("layers.1", lambda name: ".layers.1." in name),
        ("model.layers.*.mlp", lambda name: ".mlp." in name),
        ("*norm*", lambda name: "norm" in name),
        ("lm_head", lambda name: "embed_tokens" in name),  # tied
        ("embed_tokens.weight", lambda name: "embed_tokens" in name),
    ],
)
def test_names_of_modules_and_parameters(model: Any, pattern: str, fits: Callable[[str], bool]) -> None:
    frozen = {name for name, _ in model.named_parameters()} - learning_at(
        Learning(model, [pattern], None, 10), model, 0
    )
    assert frozen == {name for name, _ in model.named_parameters() if fits(name)} != set()


def test_layers_are_thawed_at_their_steps(model: Any) -> None:
    learning = Learning(model, ["*"], {0: ["model.norm"], 3: ["layers.1"], 5: ["*"]}, 10)
    everything = {name for name, _ in model.named_parameters()}
    assert learning_at(learning, model, 2) == {"model.norm.weight"}
    upper = {name for name in everything if ".layers.1." in name}
    assert learning_at(learning, model, 3) == {"model.norm.weight", *upper}
    assert learning_at(learning, model, 9) == everything
    assert learning_at(learning, model, 0) == {"model.norm.weight"}
    assert [step for step in range(1, 10) if learning.apply(step)] == [3, 5]
    assert learning.apply(4)
    assert not learning.apply(4)


def test_chosen_rows_learn_whatever_is_frozen_and_their_tables_never_do(model: Any) -> None:
    TrainableRows(model, [5, 6])
    learning = Learning(model, ["*"], {4: ["*"]}, 10)
    rows = "model.embed_tokens.trainable_rows"
    assert learning_at(learning, model, 0) == {rows}
    assert learning_at(learning, model, 4) == {name for name, _ in model.named_parameters()} - {
        "model.embed_tokens.weight"
    }


@pytest.mark.parametrize(
    ("freeze", "unfreeze", "message"),
    [
        (["layer.1"], None, r"freeze: 'layer.1' fits no parameter of the model; modules are .*layers.1"),
        (["*"], None, "no parameter learns at step 0"),
        (["layers"], {10: ["layers"]}, "unfreeze: step 10 is never reached; the run has steps 0 to 9"),
        (["layers.0"], {2: ["layers.1"]}, "unfreeze: at step 2 'layers.1' names nothing that is frozen still"),
        (["layers.0"], {2: ["layers.0"], 3: ["layers.0"]}, "unfreeze: at step 3 'layers.0' names nothing"),
        (["layers.0"], {2: ["nothing"]}, "unfreeze: 'nothing' fits no parameter"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    model: Any, freeze: list[str], unfreeze: dict[int, list[str]] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Learning(model, freeze, unfreeze, 10)


def test_frozen_parameters_keep_their_bits_and_get_no_state(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(freeze=["embed_tokens", "layers.0"], weight_decay=0.1)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    for name in before:
        frozen = "embed_tokens" in name or "layers.0" in name
        assert torch.equal(before[name], after[name]) == frozen, name
    held = {parameter for optimizer in trainer.optimizers for parameter in optimizer.state}
    assert held == set(trainer.learning.ever())


@pytest.mark.parametrize("stop_at", [2, 3, 4])
def test_a_run_resumed_across_a_boundary_ends_as_the_uninterrupted_one(
    make_trainer: MakeTrainer, tmp_path: Path, stop_at: int
) -> None:
    course: dict[str, Any] = {"freeze": ["*"], "unfreeze": {0: ["embed_tokens"], 3: ["layers.1"], 4: ["*"]}}
    resume_alike(make_trainer, tmp_path, stop_at, **course)


def test_names_are_those_without_adapters(model: Any) -> None:
    wrapped = nn.ModuleDict({"base_model": nn.ModuleDict({"model": model})})
    assert sorted(names_of(wrapped).values()) == sorted(names_of(model).values())
