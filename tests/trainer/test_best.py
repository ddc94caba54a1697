import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fastft.trainer.evaluation.best import Best
from fastft.trainer.saving.checkpoint import checkpoints, step_of
from fastft.trainer.saving.export import read_source

from .conftest import MakeTrainer, assert_same, printed, weights


def test_follows_the_lowest_loss_and_counts_what_came_after() -> None:
    best = Best("eval_loss", 2)
    verdicts = [best.judge(step, {"eval_loss": loss}) for step, loss in enumerate([3.0, 2.0, 2.5, 1.9, 1.9, 2.0])]
    assert verdicts == [True, True, False, True, False, False]
    assert (best.step, best.value, best.waited, best.exhausted) == (3, 1.9, 2, True)


def test_of_probabilities_more_is_better() -> None:
    best = Best("tokens.<a>.probability", None)
    assert [best.judge(n, {"tokens": {"<a>": {"probability": p}}}) for n, p in enumerate([0.1, 0.3, 0.2])] == [1, 1, 0]
    assert not best.exhausted


def test_no_number_is_never_the_best() -> None:
    best = Best("eval_loss", 1)
    assert not best.judge(0, {"eval_loss": math.nan})
    assert best.exhausted


def test_a_token_that_is_never_emitted_has_no_precision_yet() -> None:
    best = Best("tokens.<a>.precision", 2)
    found: list[dict[str, float]] = [{"due": 3.0}, {"due": 3.0, "precision": 0.5}, {"due": 3.0}]
    assert [best.judge(step, {"step": step, "tokens": {"<a>": facts}}) for step, facts in enumerate(found)] == [0, 1, 0]
    assert (best.step, best.waited) == (1, 1)
    with pytest.raises(ValueError, match=r"metric_for_best_model is 'tokens.<b>.precision'; .* tells tokens.<a>.due"):
        Best("tokens.<b>.precision", 2).judge(0, {"step": 0, "tokens": {"<a>": found[0]}})


def test_the_log_tells_the_same() -> None:
    records = [{"step": 4, "eval_loss": 2.0}, {"step": 4, "error_rate": 0.5}, {"step": 8, "eval_loss": 1.0},
               {"step": 8, "error_rate": 0.7}, {"step": 9, "loss": 0.1}]  # fmt: skip
    assert (Best("error_rate", 1, records).step, Best("eval_loss", 1, records).step) == (4, 8)


def test_an_unknown_number_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"metric_for_best_model is 'accuracy'.*eval_loss, eval_losses.mlm"):
        Best("accuracy", None).judge(1, {"step": 1, "eval_loss": 1.0, "eval_losses": {"mlm": 2.0}})


STOPPING: dict[str, Any] = {
    "eval_fraction": 0.3, "eval_steps": 2, "max_steps": 40, "learning_rate": 0.5, "early_stopping_patience": 2,
    "load_best_model_at_end": True, "save_total_limit": 1,
}  # fmt: skip


def test_a_run_that_gets_worse_ends_early_with_its_best_weights(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(**STOPPING | {"eval_on_start": False})
    kept: dict[int, dict[str, torch.Tensor]] = {}
    trainer.optimizers[0].register_step_post_hook(lambda *_: kept.update({trainer.state.step + 1: weights(trainer)}))
    report = trainer.train()
    losses = {record["step"]: record["eval_loss"] for record in trainer.log.having("eval_loss")}
    best = min(losses, key=losses.__getitem__)
    assert report.step == best + 4 < 40
    assert report.eval_loss_after == losses[best]
    assert Path(report.checkpoint or "") == tmp_path / "run" / f"checkpoint-{best}"
    assert_same(kept[best], weights(trainer))
    assert [step_of(path) for path in checkpoints(tmp_path / "run")] == [best, report.step]
    assert f"that of step {best}" in printed(trainer)
    assert read_source(tmp_path / "run").checkpoint.name == f"checkpoint-{best}"  # what is exported


def test_a_resumed_run_knows_how_long_it_has_waited(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    whole = make_trainer(**STOPPING, output_dir=str(tmp_path / "whole"))
    ended = whole.train().step
    make_trainer(**STOPPING | {"max_steps": ended - 2, "lr_scheduler_type": "constant"}).train()
    constant = make_trainer(**STOPPING | {"lr_scheduler_type": "constant"}, output_dir=str(tmp_path / "constant"))
    ended = constant.train().step
    rest = make_trainer(**STOPPING | {"lr_scheduler_type": "constant"}, resume_from_checkpoint=True)
    assert rest.train().step == ended
    assert rest.best.step == constant.best.step


WORSE = STOPPING | {"early_stopping_patience": None, "save_total_limit": None, "lr_scheduler_type": "constant"}


def test_the_best_of_before_a_resume_elsewhere_is_restored(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    course = WORSE | {"max_steps": 4, "learning_rate": 5.0, "eval_on_start": False}
    make_trainer(**course).train()
    last = str(tmp_path / "run" / "checkpoint-4")
    further = course | {"max_steps": 6, "learning_rate": 500.0, "output_dir": str(tmp_path / "rest")}
    rest = make_trainer(**further, resume_from_checkpoint=last)
    report = rest.train()
    assert rest.best.step == 2
    assert report.checkpoint == str(tmp_path / "run" / "checkpoint-2")
    assert report.eval_loss_after == rest.best.value


def test_what_is_told_at_the_end_is_of_the_weights_at_the_end(make_trainer: MakeTrainer) -> None:
    """The best evaluation was before the first step, and of that no checkpoint is kept."""
    trainer = make_trainer(**WORSE | {"max_steps": 4, "learning_rate": 5.0})
    report = trainer.train()
    assert trainer.best.step == 0
    assert report.eval_loss_after == trainer.log.having("eval_loss")[-1]["eval_loss"] > 10
    assert "that of step 0, of which no checkpoint was kept" in printed(trainer)


def test_a_resumed_run_may_follow_another_number(make_trainer: MakeTrainer) -> None:
    make_trainer(eval_fraction=0.3, max_steps=2).train()
    rest = make_trainer(
        eval_fraction=0.3, max_steps=4, resume_from_checkpoint=True, eval_generations=2, generation_max_new_tokens=3,
        metric_for_best_model="error_rate",
    )  # fmt: skip
    rest.train()
    assert rest.best.step == 4
