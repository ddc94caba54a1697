import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fastft.trainer import BadStep
from fastft.trainer.saving.checkpoint import checkpoints, step_of

from .conftest import MakeTrainer, assert_same, printed, weights


def test_the_loss_falls_and_everything_is_written(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=40, eval_fraction=0.2, eval_steps=20, num_generations=1, logging_steps=5)
    report = trainer.train()
    losses = [record["loss"] for record in trainer.log.having("loss")]
    assert len(losses) == 8
    assert losses[-1] < 0.7 * losses[0]
    assert report.eval_loss_before is not None
    assert report.eval_loss_after is not None
    assert report.eval_loss_after < 0.8 * report.eval_loss_before
    assert [record["step"] for record in trainer.log.having("eval_loss")] == [0, 20, 40]
    assert [record["step"] for record in trainer.log.having("generations")] == [0, 20, 40]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    written = {"config.yaml", "log.jsonl", "loss.png", "report.html", "report.json", "report.txt"}
    assert names == {"checkpoint-40", *written}
    assert json.loads((tmp_path / "run" / "report.json").read_text())["eval_loss_after"] == report.eval_loss_after
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert logged == trainer.log.records
    assert "step 40/40" in printed(trainer)
    assert "0:00:00 left" in printed(trainer)


def test_patched_and_unpatched_training_agree(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    runs = [
        make_trainer(patch=patch, output_dir=str(tmp_path / str(patch)), logging_steps=1) for patch in (True, False)
    ]
    losses = [[record["loss"] for record in run.train() and run.log.having("loss")] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, weight in weights(runs[0]).items():
        torch.testing.assert_close(weight, weights(runs[1])[name], rtol=1e-3, atol=1e-4)


def test_evaluation_and_saving_leave_the_training_as_it_is(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    quiet = make_trainer(eval_fraction=0.3, eval_on_start=False, output_dir=str(tmp_path / "quiet"))
    busy = make_trainer(eval_fraction=0.3, eval_steps=1, num_generations=2, generation_max_new_tokens=3, save_steps=2)
    quiet.train()
    busy.train()
    assert_same(weights(quiet), weights(busy))


def test_activation_checkpointing_changes_nothing_but_memory(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    plain = make_trainer(max_steps=3)
    frugal = make_trainer(max_steps=3, activation_checkpointing=True, output_dir=str(tmp_path / "frugal"))
    plain.train()
    frugal.train()
    assert_same(weights(plain), weights(frugal))


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(make_trainer: MakeTrainer) -> None:
    trainer, seen = make_trainer(bf16=True, max_steps=2), set()
    layer = trainer.model.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    report = trainer.train()
    assert seen == {torch.bfloat16}
    assert {tensor.dtype for tensor in weights(trainer).values()} == {torch.float32}
    assert {state["exp_avg"].dtype for state in trainer.optimizers[0].state.values()} == {torch.float32}
    assert report.precision.startswith("bf16")
    assert make_trainer(output_dir=trainer.config.output_dir + "x").bf16 is torch.cuda.is_available()


def test_gradients_are_clipped_to_the_global_norm(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    seen = {}
    for limit in (0.0, 0.01, 1e9):
        trainer = make_trainer(max_grad_norm=limit, max_steps=1, output_dir=str(tmp_path / str(limit)))
        gradients = []

        def before_step(optimizer: torch.optim.Optimizer, args: object, kwargs: object, into: list = gradients) -> None:
            into += [p.grad.flatten().clone() for group in optimizer.param_groups for p in group["params"]]

        trainer.optimizers[0].register_step_pre_hook(before_step)
        trainer.train_step()
        seen[limit] = torch.cat(gradients)
        assert trainer.grad_norm == pytest.approx(seen[0.0].norm().item(), rel=1e-5)
    assert torch.equal(seen[0.0], seen[1e9])
    assert seen[0.01].norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_no_number_stops_the_run_on_the_spot(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(save_steps=2, max_steps=5)
    task = trainer.tasks[0]
    second = [index for row in task.windows[3][1] for index in row]

    def poison(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        batch = {tuple(trainer.tasks[0].train.samples[i].input_ids) for i in second}
        ids = {tuple(row[row != task.objective.pad_token_id].tolist()) for row in args[0]}  # type: ignore[index]
        is_second = any(row[: len(one)] == one for row in batch for one in ids)
        return output * float("nan") if trainer.state.step == 3 and is_second else output

    trainer.model.get_input_embeddings().register_forward_hook(poison)
    kept: dict[str, torch.Tensor] = {}
    trainer.optimizers[0].register_step_post_hook(lambda *_: kept.update(weights(trainer)))
    named = ", ".join(map(str, second))
    with pytest.raises(BadStep, match=rf"step 4: loss nan.*on samples {named} of the training data"):
        trainer.train()
    assert_same(kept, weights(trainer))
    assert [step_of(path) for path in checkpoints(tmp_path / "run")] == [2]


def poisoned(trainer: Any, step: int, factor: float) -> None:
    """What the head is given is multiplied in one step."""

    def poison(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return output * factor if module.training and trainer.state.step == step else output

    trainer.model.model.norm.register_forward_hook(poison)


def test_a_bad_step_is_left_out_if_told_to(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=5, on_bad_step="skip", logging_steps=1)
    poisoned(trainer, 2, float("nan"))
    seen: list[dict[str, torch.Tensor]] = []
    trainer.optimizers[0].register_step_post_hook(lambda *_: seen.append(weights(trainer)))
    report = trainer.train()
    assert len(seen) == 4
    assert (report.step, report.skipped_steps) == (5, 1)
    assert "step 3: loss nan" in printed(trainer)
    assert all(torch.isfinite(weight).all() for weight in weights(trainer).values())
    losses = [record["loss"] for record in trainer.log.having("loss")]
    assert all(loss == loss for loss in losses)


def test_a_spike_stops_the_run_and_a_resumed_one_as_well(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    course = {"max_steps": 30, "spike_factor": 3.0, "save_steps": 18, "learning_rate": 1e-4}
    for output, resume in (("run", False), ("rest", str(tmp_path / "run" / "checkpoint-18"))):
        trainer = make_trainer(**course, output_dir=str(tmp_path / output), resume_from_checkpoint=resume)
        poisoned(trainer, 20, 1e4)
        with pytest.raises(BadStep, match=r"step 21: loss .* more than 3 times the median .* of the last 20"):
            trainer.train()


def test_labels_are_smoothed_in_training_alone(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    plain = make_trainer(max_steps=1, eval_fraction=0.2, logging_steps=1)
    smooth = make_trainer(
        max_steps=1, eval_fraction=0.2, logging_steps=1, label_smoothing_factor=0.3, output_dir=str(tmp_path / "smooth")
    )
    before = [run.train().eval_loss_before for run in (plain, smooth)]
    assert before[0] == before[1]
    logged = [run.log.having("loss")[0]["loss"] for run in (plain, smooth)]
    share = smooth.shares_of(0)[0]
    logits = torch.log(torch.tensor(float(smooth.model.config.vocab_size)))  # of an untrained model: nearly uniform
    assert logged[0] != logged[1]
    assert logged[1] == pytest.approx(0.7 * logged[0] + 0.3 * float(logits), rel=0.05)
    assert len(share.batches) == 2


def test_noise_on_embeddings_is_drawn_by_seed(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    runs = [
        make_trainer(neftune_noise_alpha=alpha, output_dir=str(tmp_path / name), eval_fraction=0.2)
        for name, alpha in (("a", 5.0), ("b", 5.0), ("c", None))
    ]
    reports = [run.train() for run in runs]
    assert_same(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(runs[0].model.lm_head.weight, runs[2].model.lm_head.weight)
    assert reports[0].eval_loss_before == reports[2].eval_loss_before


def test_dropout_of_the_whole_model(make_trainer: MakeTrainer) -> None:
    assert make_trainer(dropout=0.25).model.config.attention_dropout == 0.25


def test_only_the_newest_checkpoints_are_kept(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(save_steps=1, save_total_limit=2).train()
    assert [step_of(path) for path in checkpoints(tmp_path / "run")] == [5, 6]


def test_length_by_epochs(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=-1, num_train_epochs=1.5)
    assert trainer.tasks[0].windows.steps_per_epoch == 4  # 24 samples, 3 per batch, 2 batches per step
    assert trainer.max_steps == 6


def test_counts_and_rates(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=4)
    report = trainer.train()
    stats = trainer.tasks[0].train.stats
    assert (report.tokens, report.supervised_tokens) == (stats.tokens, stats.supervised_tokens)
    assert report.epoch == 1
    assert report.tokens_per_second == pytest.approx(report.tokens / report.seconds)
    assert report.peak_memory_bytes > 0


def test_weights_of_tokens_count(make_trainer: MakeTrainer) -> None:
    """A window's loss is normalised by the sum of its weights, and so are the logged means."""
    trainer = make_trainer(max_steps=1, logging_steps=1)
    for sample in trainer.tasks[0].train.samples:
        sample.weights[:] = [weight * 0.125 for weight in sample.weights]
    light = trainer.train().train_loss
    assert light == pytest.approx(
        make_trainer(resume_from_checkpoint=False, output_dir=str(trainer.output_dir / "b"), max_steps=1)
        .train()
        .train_loss,
        rel=1e-5,
    )


def test_seeds_of_batches_are_apart(make_trainer: MakeTrainer) -> None:
    share = make_trainer().shares_of(0)[0]
    seeds = [each for seed in range(30) for step in range(30) for each in share.seeds(seed, step)]
    assert len(set(seeds)) == len(seeds) == 1800
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_an_evaluation_that_fails_at_the_end_costs_no_training(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(eval_fraction=0.2, eval_on_start=False)
    monkeypatch.setattr(trainer, "assess", lambda: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        trainer.train()
    assert [step_of(path) for path in checkpoints(tmp_path / "run")] == [6]


def test_an_evaluation_that_a_stop_left_out_is_made_up_for(make_trainer: MakeTrainer) -> None:
    course: dict[str, Any] = {"eval_fraction": 0.2, "eval_steps": 2}
    stopped = make_trainer(**course)
    stopped.optimizers[0].register_step_post_hook(
        lambda *_: setattr(stopped.stop, "signal", signal.SIGTERM) if stopped.state.step == 1 else None
    )
    assert stopped.train().step == 2
    rest = make_trainer(**course, resume_from_checkpoint=True)
    rest.train()
    assert [record["step"] for record in rest.log.having("eval_loss")] == [0, 2, 4, 6]


def test_steps_that_were_left_out_have_no_loss(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=3, on_bad_step="skip", logging_steps=1)
    poisoned(trainer, 1, float("nan"))
    trainer.train()
    records = [record for record in trainer.log.records if "grad_norm" in record]
    assert ["loss" in record for record in records] == [True, False, True]
    assert records[1]["skipped"] == 1
