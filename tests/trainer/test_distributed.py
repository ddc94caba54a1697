"""Runs on two gloo processes: what one process would have learned, whatever the strategy."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_on
from rich.console import Console
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from fastft.trainer import TrainConfig, Trainer

from .conftest import MakeConfig, MakeTrainer, assert_same, weights

ONE = {"gradient_accumulation_steps": 4, "logging_steps": 1}
TWO = {"gradient_accumulation_steps": 2, "logging_steps": 1}


def run(config: TrainConfig) -> Trainer:
    trainer = Trainer(config, Console(file=io.StringIO(), width=100))
    trainer.train()
    return trainer


def member(rank: int, n: int, config: TrainConfig, kind: str | None = None) -> None:
    trainer = run(config)
    if kind == "sharded":
        assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    mine = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in mine.items()}
    torch.save(whole, Path(config.output_dir) / f"rank{rank}.pt")


def logged(folder: Path, key: str) -> list[float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record[key] for record in records if key in record]


def compare(one: Trainer, folder: Path, tolerance: float = 2e-5) -> None:
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    assert_same(*ranks)
    for key, rel in (("loss", 1e-5), ("grad_norm", 1e-3), ("eval_loss", 1e-4)):
        assert logged(folder, key) == pytest.approx(logged(one.output_dir, key), rel=rel)
    for name, weight in weights(one).items():
        torch.testing.assert_close(ranks[0][name], weight, rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_does(make_config: MakeConfig, tmp_path: Path, strategy: Any) -> None:
    """With dropout; the epoch's last window has 2 batches of 4 for 2 processes, then 1 for 2."""
    course: dict[str, Any] = {"max_train_samples": 20, "eval_fraction": 0.1, "eval_steps": 2, "weight_decay": 0.1}
    course["watch_tokens"] = ["<eos>"]
    one = run(make_config(**ONE, **course, output_dir=str(tmp_path / "one")))
    config = make_config(**TWO, **course, distributed=strategy, output_dir=str(tmp_path / "two"))
    run_on(2, member, config, "sharded" if strategy == "fsdp" else None)
    compare(one, tmp_path / "two")
    assert len(logged(tmp_path / "two", "eval_loss")) == 4
    tokens, others = (logged(tmp_path / folder, "tokens") for folder in ("one", "two"))
    for mine, theirs in zip(tokens, others, strict=True):
        assert theirs["<eos>"] == pytest.approx(mine["<eos>"], rel=1e-4)
        assert mine["<eos>"]["due"] > 0
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "checkpoint-6")
    assert type(saved).__name__ == "LlamaForCausalLM"
    for name, weight in torch.load(tmp_path / "two" / "rank0.pt").items():
        assert torch.equal(saved.state_dict()[name], weight)


@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_tasks_whose_heads_take_turns(
    make_config: MakeConfig, bert_dir: str, documents: str, tmp_path: Path, schedule: Any
) -> None:
    course: dict[str, Any] = {
        "model": bert_dir, "train_data": documents, "task_schedule": schedule, "on_empty": "drop", "max_steps": 4,
        "tasks": [{"objective": "nsp"}, {"objective": "mlm"}],
    }  # fmt: skip
    one = run(make_config(**ONE, **course, output_dir=str(tmp_path / "one")))
    run_on(2, member, make_config(**TWO, **course, output_dir=str(tmp_path / "two")))
    compare(one, tmp_path / "two")


def test_rows_of_an_untied_table(make_config: MakeConfig, untied_dir: str, tmp_path: Path) -> None:
    course: dict[str, Any] = {"model": untied_dir, "weight_decay": 0.1}
    one = run(make_config(**ONE, **course, output_dir=str(tmp_path / "one")))
    assert len(one.optimizers) == 2
    run_on(2, member, make_config(**TWO, **course, output_dir=str(tmp_path / "two")))
    compare(one, tmp_path / "two")


def test_an_untied_table_alone(make_config: MakeConfig, untied_dir: str, tmp_path: Path) -> None:
    """DDP has nothing to do then."""
    course: dict[str, Any] = {"model": untied_dir, "freeze": ["*"], "unfreeze": {0: ["embed_tokens"], 4: ["*"]}}
    one = run(make_config(**ONE, **course, output_dir=str(tmp_path / "one")))
    run_on(2, member, make_config(**TWO, **course, output_dir=str(tmp_path / "two")))
    compare(one, tmp_path / "two")


@pytest.mark.parametrize("objective", ["mlm", "nsp"])
def test_embeddings_that_are_a_block_and_tied(
    make_config: MakeConfig, bert_dir: str, documents: str, tmp_path: Path, objective: Any
) -> None:
    course: dict[str, Any] = {"model": bert_dir, "train_data": documents, "objective": objective, "on_empty": "drop"}
    one = run(make_config(**ONE, **course, output_dir=str(tmp_path / "one")))
    run_on(2, member, make_config(**TWO, **course, distributed="fsdp", output_dir=str(tmp_path / "two")), "sharded")
    compare(one, tmp_path / "two")


def test_layers_thawed_on_the_way(make_config: MakeConfig, tmp_path: Path) -> None:
    course: dict[str, Any] = {"freeze": ["*"], "unfreeze": {0: ["model.norm"], 2: ["layers.1"], 4: ["*"]}}
    one = run(make_config(**ONE, **course, output_dir=str(tmp_path / "one")))
    for strategy in ("ddp", "fsdp"):
        config = make_config(**TWO, **course, distributed=strategy, output_dir=str(tmp_path / strategy))
        run_on(2, member, config)
        compare(one, tmp_path / strategy)


@pytest.mark.parametrize(("first", "then"), [("fsdp", "fsdp"), ("fsdp", None), (None, "fsdp"), ("ddp", None)])
def test_a_run_goes_on_with_other_processes(
    make_config: MakeConfig, make_trainer: MakeTrainer, tmp_path: Path, first: Any, then: Any
) -> None:
    """Two processes, sharded or not, then one, or the other way round: the run that was not interrupted."""
    whole = run(make_config(**ONE, output_dir=str(tmp_path / "whole")))
    for strategy, part in ((first, {"save_steps": 3}), (then, {"resume_from_checkpoint": True})):
        if part.get("resume_from_checkpoint"):  # as if it had been killed at step 3
            shutil.rmtree(tmp_path / "run" / "checkpoint-6")
        if strategy is None:
            run(make_config(**ONE, **part))
        else:
            run_on(2, member, make_config(**TWO, **part, distributed=strategy))
    end = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-6").state_dict()
    for name, weight in weights(whole).items():
        torch.testing.assert_close(end[name], weight, rtol=1e-3, atol=2e-5)


def test_sharded_matmuls_in_bf16(make_config: MakeConfig, tmp_path: Path) -> None:
    """FSDP rounds weights and activations where autocast does the inputs of matmuls; sums and weights stay fp32."""
    one, fp32 = (run(make_config(**ONE, bf16=bf16, output_dir=str(tmp_path / f"{bf16}"))) for bf16 in (True, False))
    config = make_config(**TWO, bf16=True, distributed="fsdp", output_dir=str(tmp_path / "two"))
    run_on(2, member, config, "sharded")
    for key, tolerance in (("loss", 0.01), ("grad_norm", 0.05)):
        alone, shared = [record[key] for record in one.log.having(key)], logged(tmp_path / "two", key)
        assert shared == pytest.approx(alone, rel=tolerance)
        assert shared != pytest.approx([record[key] for record in fp32.log.having(key)], rel=1e-4)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "checkpoint-6").state_dict()
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert any((value.bfloat16() != value).any() for value in saved.values())


def test_another_number_of_batches_in_a_step_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    run(make_config(**ONE, max_steps=2))
    with pytest.raises(ValueError, match=r"a step had 4 x 1 batches .*, has 2 x 1"):
        run(make_config(**TWO, resume_from_checkpoint=True))
