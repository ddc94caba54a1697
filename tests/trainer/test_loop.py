import json
from pathlib import Path

import pytest
import torch

from fastft.trainer import NonFiniteLoss
from fastft.trainer.checkpoint import checkpoints, step_of
from fastft.trainer.loop import step_seed

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
    assert names == {"checkpoint-40", "config.yaml", "log.jsonl", "loss.png", "report.json", "report.txt"}
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
    assert {state["exp_avg"].dtype for state in trainer.optimizer.state.values()} == {torch.float32}
    assert report.precision.startswith("bf16")
    assert make_trainer(output_dir=trainer.config.output_dir + "x").bf16 is torch.cuda.is_available()


def test_gradients_are_clipped_to_the_global_norm(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    seen = {}
    for limit in (0.0, 0.01, 1e9):
        trainer = make_trainer(max_grad_norm=limit, max_steps=1, output_dir=str(tmp_path / str(limit)))
        gradients = []

        def before_step(optimizer: torch.optim.Optimizer, args: object, kwargs: object, into: list = gradients) -> None:
            into += [p.grad.flatten().clone() for group in optimizer.param_groups for p in group["params"]]

        trainer.optimizer.register_step_pre_hook(before_step)
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
    trainer.optimizer.register_step_post_hook(lambda *_: kept.update(weights(trainer)))
    named = ", ".join(map(str, second))
    with pytest.raises(NonFiniteLoss, match=rf"step 4: loss nan.*on samples {named} of the training data"):
        trainer.train()
    assert_same(kept, weights(trainer))
    assert [step_of(path) for path in checkpoints(tmp_path / "run")] == [2]


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


def test_seeds_of_steps_are_apart() -> None:
    seeds = {step_seed(seed, step) for seed in range(30) for step in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**32 for seed in seeds)
