"""An evaluation of a run as it stands: losses on held-out samples, and what the model writes for some of them."""

from functools import partial
from typing import Any

from fastft.data import Corpus, Objective
from fastft.trainer.evaluation.error_rate import error_rate
from fastft.trainer.evaluation.evaluate import evaluate
from fastft.trainer.evaluation.generate import complete, drawn, openings
from fastft.trainer.evaluation.watched import Watched
from fastft.trainer.setup import Setup


def assess(run: Setup) -> dict[str, Any] | None:
    """The loss on the held-out samples of each task and their mean, watched tokens, and completions; logged and said.

    A perplexity is that of one task with one output.

    Returns:
        The record of the evaluation, the same in every process; None where nothing is held out, or it was stopped.
    """
    step = run.state.step
    record: dict[str, Any] = {"step": step}
    parts: dict[str, float] = {}
    held_out = [(task, task.eval) for task in run.tasks if task.eval is not None]
    watched = Watched(run.watched) if run.watched else None
    for task, corpus in held_out:
        with run.progress.subtask("evaluate") as subtask:
            found = evaluate(
                run.model, task.objective, corpus, run.config.per_device_eval_batch_size, run.device, run.autocast,
                on_batch=subtask.update, should_stop=lambda: bool(run.stop), watched=watched, world=run.world,
            )  # fmt: skip
        if found is None:
            return None
        name = f"{task.name}: " if len(run.tasks) > 1 else ""
        named = {f"{task.name}.{output}" if name else output: loss for output, loss in found.parts.items()}
        outputs = "".join(f", {output} {loss:.4f}" for output, loss in named.items() if len(named) > 1)
        perplexity = None if name else found.perplexity
        if perplexity is not None:
            record["perplexity"] = perplexity
            outputs = f", perplexity {perplexity:.2f}"
        run.progress.say(
            f"step {step}: {name}evaluation loss {found.eval_loss:.4f}{outputs} "
            f"({len(corpus.samples):,} samples, {subtask.seconds:.1f} s)"
        )
        parts |= named if len(named) > 1 else {task.name: found.eval_loss}
        record["eval_loss"] = record.get("eval_loss", 0.0) + found.eval_loss / len(held_out)
    if not held_out:
        return None
    if len(parts) > 1:
        record["eval_losses"] = parts
    if watched is not None:
        watched.sums().copy_(run.world.sum(watched.sums()))
        record["tokens"] = watched.result()
        _say_tokens(run, record["tokens"])
    run.note(record)
    for task, corpus in held_out:
        if task.objective.generates and run.model.can_generate() and (run.world.leads or run.sharded):
            record |= write_samples(run, task.objective, corpus)
    return run.world.share(record)


def _say_tokens(run: Setup, tokens: dict[str, dict[str, float]]) -> None:
    for token, numbers in tokens.items():
        told = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        run.progress.say(f"step {run.state.step}: token {token!r}  {told}")


def write_samples(run: Setup, objective: Objective, corpus: Corpus) -> dict[str, float]:
    """What the model now writes for held-out prompts, shown for a few, and its error rate over some more."""
    config, step = run.config, run.state.step
    write = partial(
        complete, run.model, objective, max_new_tokens=config.generation_max_new_tokens, device=run.device,
        autocast=run.autocast, batch_size=config.per_device_eval_batch_size,
    )  # fmt: skip
    if examples := openings(objective, corpus, config.num_generations):
        with run.progress.subtask("generate"):
            run.note({"step": step, "generations": write(examples)})
    compared = drawn(objective, corpus, config.eval_generations)
    if not compared:
        return {}
    with run.progress.subtask("compare") as subtask:
        texts = write(compared)
    if not texts:
        run.progress.say(f"step {step}: no word error rate, as no prompt leaves the model a position to write at")
        return {}
    rate = error_rate((text["reference"], text["completion"]) for text in texts)
    run.note({"step": step, "error_rate": rate})
    run.progress.say(f"step {step}: word error rate {rate:.1%} ({len(texts):,} completions, {subtask.seconds:.1f} s)")
    return {"error_rate": rate}
