"""SparseAdamW(engine="bitwise") through all that a run may bring: the bits of torch's dense AdamW."""

from pathlib import Path

import pytest
import torch

from fastft.embedding.table import SparseEmbedding
from fastft.optim import SparseAdamW, clip_grad_norm_
from optim.runs import ROWS, WIDTH, Twins, cosine, zipf


@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95)])
@pytest.mark.parametrize(("rows", "gap"), [(30, 30), pytest.param(ROWS, 300, marks=pytest.mark.slow)])
def test_bitwise_for_a_thousand_steps(
    rows: int, gap: int, betas: tuple[float, float], weight_decay: float, tmp_path: Path
) -> None:
    """Warm-up and cosine, clipping, accumulation, skipped steps, a flush and a resume from a file on the way, and rows
    that no step touches for `gap` steps or more."""
    options = {"lr": 1e-2, "weight_decay": weight_decay, "betas": betas, "engine": "bitwise"}
    t = Twins(SparseAdamW, torch.optim.AdamW, rows, **options)
    longest, last = torch.zeros(2, rows, dtype=torch.int64)
    for i, ids in enumerate(zipf(1000, rows=rows)):
        assert torch.equal(*t.read(ids))
        t.backward(ids)
        if i % 3 == 0:
            t.backward(ids.roll(3)[:7])
        longest[ids] = torch.maximum(longest[ids], i - last[ids])
        last[ids] = i
        clip_grad_norm_(t.embedding.parameters(), 0.2)
        if i % 50 == 49:  # what GradScaler does where a gradient is not finite
            t.optimizer.zero_grad()
            continue
        t.step(cosine(i, 1000))
        if i == 400:
            t.optimizer.flush()
        if i == 600:
            torch.save([t.embedding.state_dict(), t.optimizer.state_dict()], tmp_path / "state")
            table, held = torch.load(tmp_path / "state")
            t.embedding = SparseEmbedding(rows, WIDTH)
            t.embedding.load_state_dict(table)
            t.optimizer = SparseAdamW(t.embedding.parameters(), engine="bitwise")
            t.optimizer.load_state_dict(held)
    t.same_bits()
    assert longest.max() >= gap
