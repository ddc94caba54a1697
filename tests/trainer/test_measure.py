from contextlib import nullcontext

import pytest
import torch

from fastft.trainer import measure
from fastft.trainer.gradient import to_batch
from fastft.trainer.measure import Cost, head_cost, memory_now, peak_memory, reset_peak_memory

from .conftest import MakeTrainer

CPU = torch.device("cpu")
SIZE = 192 << 20  # bytes: large enough for the allocator to give it back


@pytest.mark.skipif(not measure.CLEAR_REFS.exists(), reason="the peak can be reset on Linux only")
def test_peak_is_what_was_used_since_the_reset() -> None:
    before = memory_now(CPU)
    reset_peak_memory(CPU)
    block = torch.ones(SIZE // 4)
    del block
    peak = peak_memory(CPU)
    assert 0.95 * SIZE < peak - before < 1.3 * SIZE
    memory_now(CPU)  # gives back what the allocator keeps
    reset_peak_memory(CPU)
    assert peak_memory(CPU) - before < 0.5 * SIZE


@pytest.mark.skipif(not hasattr(measure.LIBC, "malloc_trim"), reason="glibc only")
def test_freed_memory_that_the_allocator_keeps_is_not_in_use() -> None:
    """Many small blocks stay with the process when freed, merged into large ones; large tensors then go there."""
    memory_now(CPU)
    blocks = [torch.ones(1 << 18) for _ in range(256)]  # 1 MiB each
    keep = torch.ones(1 << 18)
    del blocks
    before = memory_now(CPU)
    reset_peak_memory(CPU)
    block = torch.ones(SIZE // 4)
    assert peak_memory(CPU) - before > 0.95 * SIZE
    del block, keep


@pytest.mark.parametrize("patch", [True, False])
def test_head_cost_counts_positions_and_leaves_no_gradient(make_trainer: MakeTrainer, patch: bool) -> None:
    trainer = make_trainer(patch=patch)
    samples = trainer.train_data.samples[:4]
    batch = to_batch(samples, 0, CPU)
    cost = head_cost(trainer.model, batch, nullcontext())
    assert cost.positions == batch["labels"].numel()
    assert cost.supervised == sum(weight != 0 for sample in samples for weight in sample.weights[1:])
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
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
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
    cost = head_cost(trainer.model, to_batch(trainer.train_data.samples[:2], 0, CPU), nullcontext())
    assert cost.unfused == Cost(None, None)
    assert cost.fused.seconds is not None
