from contextlib import nullcontext

import pytest
import torch

from fastft.data import Batch, Target
from fastft.trainer.reporting import measure
from fastft.trainer.reporting.measure import Cost, head_cost

from .conftest import MakeTrainer


@pytest.mark.parametrize("patch", [True, False])
def test_head_cost_counts_positions_and_leaves_no_gradient(make_trainer: MakeTrainer, patch: bool) -> None:
    trainer = make_trainer(patch=patch)
    batch = trainer.shares_of(0)[0].batches[0]
    cost = head_cost(trainer.model, batch, nullcontext())
    assert cost.positions == batch.targets[0].labels.numel()
    assert cost.supervised == batch.targets[0].count
    assert cost.vocab == trainer.model.config.vocab_size
    for one in (cost.fused, cost.unfused):
        assert one.seconds is not None
        assert one.seconds > 0
        assert one.bytes is not None
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert not trainer.model.get_output_embeddings()._forward_pre_hooks


def test_head_cost_sees_the_logits_of_the_unfused_head() -> None:
    """At 90 % ignored the fused head needs a fraction of the memory of N x V logits."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(100, 32), torch.nn.Linear(32, 20_000, bias=False)

        def get_output_embeddings(self) -> torch.nn.Linear:
            return self.head

        def forward(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
            out: torch.Tensor = self.head(self.embed(input_ids))
            return out

    ids = torch.randint(100, (2, 1000))
    labels = ids.masked_fill(torch.arange(1000) % 10 > 0, -100)
    batch = Batch({"input_ids": ids}, (Target("logits", labels, (labels >= 0).float()),), ids.numel())
    cost = head_cost(Model(), batch, nullcontext(), repeats=1)
    logits = 2000 * 20_000 * 4
    assert cost.supervised == 200
    assert cost.unfused.bytes is not None
    assert cost.fused.bytes is not None
    assert cost.unfused.bytes > 1.8 * logits
    assert cost.fused.bytes < 0.5 * logits


def test_running_out_of_memory_is_an_answer(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()

    def no_room(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 900 GiB")

    monkeypatch.setattr(measure.F, "cross_entropy", no_room)
    cost = head_cost(trainer.model, trainer.shares_of(0)[0].batches[0], nullcontext())
    assert cost.unfused == Cost(None, None)
    assert cost.fused.seconds is not None
