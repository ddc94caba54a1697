"""Which checkpoints of a run there are: the newest ones, and that of the best evaluation."""

from dataclasses import asdict
from pathlib import Path

import torch

from fastft.hf.pretrained import load_model
from fastft.trainer.adapt import load_trained
from fastft.trainer.given import given_tasks, model_class
from fastft.trainer.saving.checkpoint import checkpoints, save, step_of
from fastft.trainer.saving.shards import restore
from fastft.trainer.saving.whole import remove
from fastft.trainer.setup import Setup
from fastft.trainer.tasks import fingerprint


def keep(run: Setup) -> None:
    """Write checkpoint-<step>, then `prune`."""
    config = run.config
    facts = {
        **run.state.to_json(),
        "config": asdict(config),
        "data": fingerprint(run.tasks),
        "losses": {tasks: watch.losses for tasks, watch in run.watches.items()},
        "processes": run.world.size,
    }
    optimizers = [] if config.save_only_model else run.optimizers
    ever = set(run.learning.ever())
    learners = [name for name, parameter in run.model.named_parameters() if parameter in ever]
    with run.progress.subtask("save") as subtask:
        run.saved = save(
            run.output_dir, run.state.step, run.model, run.tokenizer, optimizers, facts, run.world, learners
        )
        prune(run)
    run.progress.say(f"step {run.state.step}: saved {run.saved} ({subtask.seconds:.1f} s)")


def prune(run: Setup) -> None:
    """Drop the oldest checkpoints beyond `save_total_limit`; not that of the best evaluation, if that is to be kept."""
    config = run.config
    if run.world.leads:
        for old in checkpoints(run.output_dir)[: -(config.save_total_limit or 10**9)]:
            if not (config.load_best_model_at_end and step_of(old) == run.best.step):
                remove(old)


def best_checkpoint(run: Setup) -> Path | None:
    """That of the best evaluation, if it was kept: here, or where the run was resumed from."""
    before = [run.start.checkpoint.parent] if run.start.checkpoint else []
    found = (folder / f"checkpoint-{run.best.step}" for folder in (run.output_dir, *before))
    return next((path for path in found if path.is_dir()), None)


def restore_best(run: Setup) -> None:
    """Give the model the weights of its best evaluation, and make that checkpoint the run's."""
    found = best_checkpoint(run)
    if found is None and run.best.step is not None:
        run.progress.say(f"the best evaluation was that of step {run.best.step}, of which no checkpoint was kept")
    if found is None or found == run.saved:
        return
    if run.config.lora is not None:
        load_trained(run.model, found)
    else:
        kind = model_class(given_tasks(run.config))
        best = load_model(str(found), torch.float32, kind, trust_remote_code=run.config.trust_remote_code)
        restore(run.model, best.state_dict())
    run.saved = found
    run.progress.say(f"the best evaluation was that of step {run.best.step}: its weights are back, {found}")
