"""Row gradients of data-parallel replicas, on 2 and 4 processes."""

import pytest
import torch
import torch.distributed as dist
from processes import run_on
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastft.embedding import SparseEmbedding
from fastft.optim import SparseAdamW, average_row_gradients, clip_grad_norm_, leave_to_rows

STEPS = 12


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(SparseEmbedding(40, 6), nn.Linear(6, 3))


def batch(step: int, rank: int) -> torch.Tensor:
    """Rank 1 has no token at every fourth step."""
    g = torch.Generator().manual_seed(100 * step + rank)
    return torch.randint(40, (0 if rank == 1 and step % 4 == 3 else 5,), generator=g)


def train(rank: int, n: int, engine: str) -> None:
    replica = model()
    leave_to_rows(replica)
    parallel = DistributedDataParallel(replica)
    table, rest = replica[0].weight, list(replica[1].parameters())
    rows, dense = SparseAdamW([table], lr=0.1, engine=engine), torch.optim.SGD(rest, lr=0.1)
    whole = model()
    whole_rows, whole_dense = (
        SparseAdamW([whole[0].weight], lr=0.1, engine=engine),
        torch.optim.SGD(whole[1].parameters(), lr=0.1),
    )
    for step in range(STEPS):
        parallel(batch(step, rank)).square().sum().backward()
        average_row_gradients([table])
        clip_grad_norm_(replica.parameters(), 1.0, defer=True)
        sum(whole(batch(step, r)).square().sum() for r in range(n)).div(n).backward()  # type: ignore[union-attr]
        clip_grad_norm_(whole.parameters(), 1.0)
        for optimizer in (rows, dense, whole_rows, whole_dense):
            optimizer.step()
            optimizer.zero_grad()
    for optimizer in (rows, whole_rows):
        optimizer.flush()
    for p, expected in zip(replica.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, expected)
        everyone = [torch.empty_like(p) for _ in range(n)]
        dist.all_gather(everyone, p.detach())
        assert all(torch.equal(other, p) for other in everyone), "replicas differ"


def sum_after_clipping(rank: int, n: int) -> None:
    """What was put off is done before gradients of other processes are added."""
    sums = []
    for defer in (False, True):
        table = model()[0]
        table(batch(0, rank)).square().sum().backward()
        clip_grad_norm_(table.parameters(), 0.1, defer=defer)
        average_row_gradients([table.weight])
        assert not hasattr(table.weight.grad, "factor")
        sums.append(table.weight.grad.to_dense())
    assert torch.equal(*sums)


def test_averages_of_clipped_gradients() -> None:
    run_on(2, sum_after_clipping)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("engine", ["fast", "bitwise"])
def test_replicas_stay_equal(n: int, engine: str) -> None:
    run_on(n, train, engine)
