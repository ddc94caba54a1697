"""TrainableRows under DistributedDataParallel: replicas stay equal, and train what one process would."""

import pytest
import torch
import torch.distributed as dist
from processes import run_on
from torch.nn.parallel import DistributedDataParallel

from embedding.small import batch, llama
from fastft.embedding import TrainableRows

IDS = [5, 12]
STEPS = 10


def train(rank: int, n: int, tied: bool) -> None:
    model, whole = llama(tied=tied), llama(tied=tied)
    for m in (model, whole):
        m.requires_grad_(False)
    rows, alone = TrainableRows(model, IDS), TrainableRows(whole, IDS)
    with torch.no_grad():
        for p in rows.parameters():
            p += rank  # replicas begin as rank 0
    parallel = DistributedDataParallel(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    optimizers = [torch.optim.AdamW(r.parameters(), lr=1e-2, weight_decay=0.1) for r in (rows, alone)]
    for step in range(STEPS):
        parallel(**batch(seed=100 * step + rank)).loss.backward()
        sum(whole(**batch(seed=100 * step + r)).loss for r in range(n)).div(n).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for p, expected in zip(rows.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, expected)
    kept = torch.ones(len(model.model.embed_tokens.weight), dtype=torch.bool)
    kept[IDS] = False
    tables = {f"{path}.weight" for chosen in rows.chosen for path in chosen.table.modules}
    for name, value in model.state_dict().items():
        everyone = [torch.empty_like(value) for _ in range(n)]
        dist.all_gather(everyone, value.contiguous())
        assert all(torch.equal(other, value) for other in everyone), f"{name} differs"
        same = kept if name in tables else slice(None)
        assert torch.equal(value[same], start[name][same]), f"{name} has changed"
        assert (name not in tables) or not torch.equal(value, start[name])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_replicas_stay_equal(tied: bool) -> None:
    run_on(2, train, tied)
