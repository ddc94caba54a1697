"""Steps of an optimizer on chosen rows of a table, as if every row had taken part in every step, in plain torch.

`t` is what the optimizer holds of the table (fastft/optim/table.py): row i has taken `t.last[i]` of the `steps`, each
a list of numbers, and `rule` (fastft/optim) is one step. `leap`, where given, is the rule's short way to the end of
what a row has missed (fastft/optim/leap.py).
"""

from typing import Any

import torch
from torch import Tensor

Rows = tuple[Tensor, list[Tensor]]  # of the table, of each buffer


def why_not(t: Any, rule: Any) -> str | None:
    return None


def read_rows(t: Any, ids: Tensor, rule: Any, steps: Any, leap: Any, groups: Any = None) -> Tensor:
    """(K, D): the rows `ids` (K,) after all steps; nothing is written. With `groups` (fastft/optim/gradient.py), whose
    `touched` are the ids, (N, D): at each position its row.
    """
    rows = caught_up(t, ids, rule, steps, len(steps), leap)[0].to(t.table.dtype)
    return rows if groups is None else groups.spread(rows)


def step_rows(t: Any, ids: Tensor, grad: Tensor | None, rule: Any, steps: Any, leap: Any,
              scale: Tensor | None = None, found_inf: Tensor | None = None) -> None:  # fmt: skip
    """What the rows `ids` (U,), each once, have missed, in place. With `grad` (U, D) all are admitted, and it is that
    of the last of the steps, which `leap` leaves out; those admitted since the last step are among `ids`, and what is
    to be in their state (`t.fill()`) has yet to be written.

    Scalars on the table's device, fp32: before anything else the gradient, as fp32, is multiplied by `scale` (both are
    fp64 for an fp64 table); where `found_inf` is not 0 nothing is written, beside what `t.fill()` does.
    """
    p, buffers = caught_up(t, ids, rule, steps, len(steps) - (grad is not None), leap)
    if grad is not None:
        g = grad.to(p.dtype) if scale is None else grad.to(p.dtype) * scale
        rule.step(p, buffers, g, steps[len(steps) - 1])
    if found_inf is None or not found_inf:
        t.store(ids, p, buffers, len(steps))


def caught_up(t: Any, ids: Tensor, rule: Any, steps: Any, until: int, leap: Any) -> Rows:
    """Copies of rows and buffers after steps[:until], their gradient 0 in what they missed."""
    short: Rows = t.gather(ids)
    rest = None if leap is None else rule.leap(*short, leap.rows(t.last, ids))
    if rest is not None and not rest.any():
        return short
    last, order = t.last[ids].sort(stable=True)
    p, buffers = t.gather(ids[order])
    for j in range(int(last[0]) if len(last) else until, until):
        n = int(torch.searchsorted(last, j, right=True))
        rule.step(p[:n], [b[:n] for b in buffers], torch.zeros_like(p[:n]), steps[j])
    back = order.argsort()
    looped = p[back], [b[back] for b in buffers]
    return looped if rest is None else (torch.where(rest, looped[0], short[0]), short[1])
