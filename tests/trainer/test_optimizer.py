from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from fastft.embedding import SparseEmbedding, TiedEmbedding
from fastft.optim import SparseAdamW
from fastft.trainer.optimizer import make_optimizers

from .conftest import MakeConfig, MakeTrainer, resume_alike, weights


def optimizers_of(model: nn.Module, config: Any) -> list[torch.optim.Optimizer]:
    return make_optimizers(model, config, [p for p in model.parameters() if p.requires_grad])


def test_norms_and_biases_do_not_decay(make_config: MakeConfig) -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    config = make_config(weight_decay=0.5, learning_rate=0.1, adam_beta1=0.8, adam_epsilon=1e-6)
    (optimizer,) = optimizers_of(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
    assert optimizer.defaults["betas"] == (0.8, 0.999)
    assert optimizer.defaults["eps"] == 1e-6


def test_equals_torch_adamw(make_config: MakeConfig) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 4), nn.Linear(6, 4)
    theirs.load_state_dict(ours.state_dict())
    (mine,) = optimizers_of(ours, make_config(learning_rate=0.01))
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.0, fused=False, foreach=False)
    for _ in range(5):
        for model, optimizer in ((ours, mine), (theirs, plain)):
            model(torch.arange(6.0)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def rates(optimizers: list[torch.optim.Optimizer], model: nn.Module) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[p]: (group["initial_lr"], group["weight_decay"])
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_the_first_group_that_names_a_parameter_gives_its_rates(make_config: MakeConfig, model_dir: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    groups = [
        {"params": ["*embed*"], "learning_rate": 1e-5, "weight_decay": 0.0},
        {"params": "layers.0", "learning_rate": 2e-5},
        {"params": ["layers"], "weight_decay": 0.3},
    ]
    config = make_config(learning_rate=1e-3, weight_decay=0.1, param_groups=groups)
    found = rates(optimizers_of(model, config), model)
    assert found["model.embed_tokens.weight"] == (1e-5, 0.0)
    assert found["model.layers.0.mlp.up_proj.weight"] == (2e-5, 0.1)
    assert found["model.layers.0.input_layernorm.weight"] == (2e-5, 0.0)
    assert found["model.layers.1.mlp.up_proj.weight"] == (1e-3, 0.3)
    assert found["model.norm.weight"] == (1e-3, 0.0)


def test_each_group_follows_the_schedule_from_its_own_peak(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(param_groups=[{"params": ["layers.0"], "learning_rate": 1e-4}], max_steps=4)
    seen: list[list[float]] = []
    trainer.optimizers[0].register_step_pre_hook(
        lambda optimizer, *_: seen.append([group["lr"] / group["initial_lr"] for group in optimizer.param_groups])
    )
    trainer.train()
    assert seen == [pytest.approx([x] * len(seen[0])) for x in (1.0, 0.75, 0.5, 0.25)]
    assert {g["initial_lr"] for g in trainer.optimizers[0].param_groups} == {1e-4, trainer.config.learning_rate}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"params": ["nothing"], "learning_rate": 1.0}], "param_groups: 'nothing' fits no parameter"),
        ([{"params": ["layers"]}], "number 0 is .*; wanted params .* and learning_rate, weight_decay, or both"),
        ([{"params": ["layers"], "lr": 1.0}], "number 0"),
        ([{"params": ["layers"], "learning_rate": -1.0}], "numbers >= 0"),
        ([{"params": [], "learning_rate": 1.0}], "wanted params"),
    ],
)
def test_groups_that_cannot_be_meant(
    make_config: MakeConfig, model_dir: str, groups: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        optimizers_of(AutoModelForCausalLM.from_pretrained(model_dir), make_config(param_groups=groups))


@pytest.mark.parametrize(
    ("name", "arguments", "kind"),
    [
        ("SGD", {"momentum": 0.9}, torch.optim.SGD),
        ("Adafactor", None, torch.optim.Adafactor),
        ("torch.optim.NAdam", {"decoupled_weight_decay": True}, torch.optim.NAdam),
    ],
)
def test_any_class_by_name(
    make_trainer: MakeTrainer, tmp_path: Path, name: str, arguments: dict[str, Any] | None, kind: type
) -> None:
    """And its state is that of the uninterrupted run after a resume."""
    choice: dict[str, Any] = {"optimizer": name, "optimizer_args": arguments, "learning_rate": 0.01, "adam_beta1": 0.7}
    whole = resume_alike(make_trainer, tmp_path, 4, **choice)
    assert type(whole.optimizers[0]) is kind
    assert whole.optimizers[0].defaults.get("betas", (0.7,))[0] == 0.7


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("AdmaW", None, ValueError, "did you mean 'AdamW'"),
        ("torch.nn.Linear", None, ValueError, "no optimizer"),
        ("nowhere.Optimizer", None, ImportError, "pip install nowhere"),
        ("SGD", {"momentun": 0.9}, ValueError, "optimizer SGD with .*momentun"),
        ("adamw", {"amsgrad": True}, ValueError, "such as AdamW"),
        ("LBFGS", None, ValueError, "one step per dense gradient"),
        ("SparseAdam", None, ValueError, "one step per dense gradient"),
    ],
)
def test_classes_that_are_none(
    make_config: MakeConfig, name: str, arguments: dict[str, Any] | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        optimizers_of(nn.Linear(2, 2), make_config(optimizer=name, optimizer_args=arguments))


def test_an_untied_table_is_stepped_by_row_as_adamw_would(
    make_trainer: MakeTrainer, untied_dir: str, tmp_path: Path
) -> None:
    course: dict[str, Any] = {"model": untied_dir, "weight_decay": 0.1, "max_steps": 12, "warmup_steps": 0.2}
    rows = make_trainer(**course)
    assert isinstance(rows.model.get_input_embeddings(), SparseEmbedding)
    assert [type(optimizer) for optimizer in rows.optimizers] == [torch.optim.AdamW, SparseAdamW]
    dense = make_trainer(**course, sparse_embeddings=False, output_dir=str(tmp_path / "dense"))
    assert len(dense.optimizers) == 1
    rows.train()
    dense.train()
    rows.model.state_dict()
    for name, weight in weights(dense).items():
        torch.testing.assert_close(weights(rows)[name], weight, rtol=1e-4, atol=1e-6)
    assert rows.state.total.mean_loss == pytest.approx(dense.state.total.mean_loss, rel=1e-5)


def test_a_tied_table_has_one_gradient(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    course: dict[str, Any] = {"weight_decay": 0.1, "max_steps": 12, "warmup_steps": 0.2}
    tied = make_trainer(**course)
    assert isinstance(tied.model.get_input_embeddings(), TiedEmbedding)
    dense = make_trainer(**course, sparse_embeddings=False, output_dir=str(tmp_path / "dense"))
    assert type(dense.model.get_input_embeddings()) is nn.Embedding
    assert tied.model.get_input_embeddings().weight is tied.model.lm_head.weight
    tied.train()
    dense.train()
    for name, weight in weights(dense).items():
        torch.testing.assert_close(weights(tied)[name], weight, rtol=1e-4, atol=1e-6)


def test_rows_resume_bit_for_bit(make_trainer: MakeTrainer, untied_dir: str, tmp_path: Path) -> None:
    course: dict[str, Any] = {"model": untied_dir, "weight_decay": 0.1, "eval_fraction": 0.2}
    resume_alike(make_trainer, tmp_path, 3, **course)


def test_rows_where_they_do_not_apply_are_refused_if_asked_for(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="sparse_embeddings is true, but the input embedding is tied to the head"):
        make_trainer(sparse_embeddings=True)
    assert len(make_trainer().optimizers) == 1


def test_tensors_of_a_kind_of_their_own_resume_too(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="8-bit optimizers are torchao's")
    resume_alike(make_trainer, tmp_path, 4, optimizer="torchao.optim.AdamW8bit")
