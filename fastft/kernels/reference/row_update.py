"""Steps of an optimizer on chosen rows of a table, as if every row had taken part in every step, in plain torch.

`t` is what the optimizer holds of the table (fastft/optim/table.py): row i has taken `t.last[i]` of the `steps`, each
a list of numbers, and `rule` (fastft/optim) is one step. `leap`, where given, is the rule's short way to the end of
what row ids[k] has missed: a row of numbers for each k.
"""

from typing import Any

import torch
from torch import Tensor


def why_not(t: Any, rule: Any) -> str | None:
    return None


def read_rows(t: Any, ids: Tensor, rule: Any, steps: Any, leap: Tensor | None, groups: Any = None) -> Tensor:
    """(K, D): the rows `ids` (K,) after all steps; nothing is written. With `groups` (fastft/optim/gradient.py), whose
    `touched` are the ids, (N, D): at each position its row.
    """
    rows = caught_up(t, ids, rule, steps, len(steps), leap)[0].to(t.table.dtype)
    return rows if groups is None else groups.spread(rows)


def step_rows(t: Any, ids: Tensor, grad: Tensor | None, rule: Any, steps: Any, leap: Tensor | None) -> None:
    """What the rows `ids` (U,), each once, have missed, in place. With `grad` (U, D) all are admitted, and it is that
    of the last of the steps, which `leap` leaves out; those admitted since the last step are among `ids`, and what is
    to be in their state (`t.fill()`) has yet to be written.
    """
    p, buffers = caught_up(t, ids, rule, steps, len(steps) - (grad is not None), leap)
    if grad is not None:
        rule.step(p, buffers, grad.to(p.dtype), steps[len(steps) - 1])
    t.store(ids, p, buffers, len(steps))


def caught_up(
    t: Any, ids: Tensor, rule: Any, steps: Any, until: int, leap: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Copies of rows and buffers after steps[:until], their gradient 0 in what they missed."""
    short: tuple[Tensor, list[Tensor]] = t.gather(ids)
    rest = None
    if leap is not None:
        rest = rule.leap(*short, leap)
        if not rest.any():
            return short
    last, order = t.last[ids].sort(stable=True)
    p, buffers = t.gather(ids[order])
    for j in range(int(last[0]) if len(last) else until, until):
        n = int(torch.searchsorted(last, j, right=True))
        rule.step(p[:n], [b[:n] for b in buffers], torch.zeros_like(p[:n]), steps[j])
    back = order.argsort()
    looped = p[back], [b[back] for b in buffers]
    return looped if rest is None else (torch.where(rest, looped[0], short[0]), short[1])
