import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from fastft.data import Corpus, Sample, Samples, Stats
from fastft.trainer.evaluation.evaluate import Evaluation, evaluate
from fastft.trainer.evaluation.watched import Watched

from .conftest import MakeTrainer

CPU = torch.device("cpu")


def by_hand(model: torch.nn.Module, samples: list[Sample]) -> float:
    total = weight = 0.0
    for sample in samples:
        ids = torch.tensor([sample.input_ids])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        nll = -scores[torch.arange(len(scores)), ids[0, 1:]]
        total += (nll @ torch.tensor(sample.weights[1:])).item()
        weight += sum(sample.weights[1:])
    return total / weight


def corpus_of(samples: list[Sample]) -> Corpus:
    return Corpus(Samples.of(samples), Stats(), [])


@pytest.mark.parametrize("patch", [True, False])
def test_is_the_token_weighted_mean_for_every_batch_size(make_trainer: MakeTrainer, patch: bool) -> None:
    trainer = make_trainer(patch=patch)
    samples, objective = trainer.tasks[0].train.samples, trainer.tasks[0].objective
    samples = [Sample(s.input_ids, [w * (0.5 + i % 3) for w in s.weights]) for i, s in enumerate(samples)]
    trainer.model.eval()
    expected = by_hand(trainer.model, samples)
    trainer.model.train()
    for batch_size in (1, 5, 100):
        found = evaluate(trainer.model, objective, corpus_of(samples), batch_size, CPU, nullcontext())
        assert found is not None
        assert found.eval_loss == pytest.approx(expected, rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-4)
    assert trainer.model.training
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_says_how_far_it_is_and_stops_when_told(make_trainer: MakeTrainer) -> None:
    trainer, seen = make_trainer(), []

    def on_batch(done: int, total: int) -> None:
        seen.append((done, total))

    corpus, objective = corpus_of(trainer.tasks[0].train.samples[:5]), trainer.tasks[0].objective
    assert evaluate(trainer.model, objective, corpus, 2, CPU, nullcontext(), on_batch)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    stopped = evaluate(trainer.model, objective, corpus, 2, CPU, nullcontext(), on_batch, lambda: len(seen) > 4)
    assert stopped is None
    assert len(seen) == 5


def test_perplexity_of_a_hopeless_loss() -> None:
    assert Evaluation(1000.0).perplexity == math.inf


class OneOfTwo:
    """A process whose partner's terms of every sum are known already, or are to be."""

    size = 2

    def __init__(self, rank: int, partner: Sequence[torch.Tensor] = ()) -> None:
        self.rank, self.partner, self.terms = rank, list(partner), list[torch.Tensor]()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.terms.append(values)
        return values + self.partner[len(self.terms) - 1] if self.partner else values

    def any(self, flag: bool) -> bool:
        return flag


@pytest.mark.parametrize("count", [1, 5, 6])
def test_processes_share_the_batches(make_trainer: MakeTrainer, count: int) -> None:
    trainer = make_trainer()
    corpus, objective = corpus_of(list(trainer.tasks[0].train.samples)[:count]), trainer.tasks[0].objective

    def run(world: Any) -> tuple[Any, Any, int]:
        watched, rounds = Watched({"e": trainer.tokenizer.eos_token_id}), []
        found = evaluate(
            trainer.model, objective, corpus, 2, CPU, nullcontext(),
            on_batch=lambda done, total: rounds.append(total), watched=watched, world=world,
        )  # fmt: skip
        return found, watched.sums(), len(rounds)

    alone, sums, _ = run(None)
    other = OneOfTwo(1)
    _, theirs, turns = run(other)
    found, ours, same = run(OneOfTwo(0, other.terms))
    assert turns == same == -(-count // 4)
    assert found.eval_loss == pytest.approx(alone.eval_loss, rel=1e-6)
    torch.testing.assert_close(ours + theirs, sums, rtol=1e-6, atol=0.0)
    assert sums[0, 0] == count
