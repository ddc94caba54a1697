"""Whether samples that share a row stay strangers to each other in a given model."""

from typing import Any

import torch
from torch import Tensor

from fastft.data.attention import REFUSALS, asking, forward, ordinary_tokens, window
from fastft.data.batch import Batch
from fastft.data.draws import EVALUATION, Draw
from fastft.data.objectives.objective import Objective
from fastft.data.sample import Sample, Samples

SHORT = 5  # tokens of the shorter of two samples
LEAK = 1e-5  # of the largest logit: what a token may change unseen; exactly 0, but where experts share their rows
CLOSE = {4: 1e-4, 2: 5e-2}  # of the largest logit, by bytes of a number: what two layouts may differ by in rounding


def check_isolation(model: Any, objective: Objective) -> None:
    """Compare two samples in one row with the same two alone.

    Each must have the logits it has alone, up to rounding, and not change at all with the other's tokens. The model is
    left as it was.

    Raises:
        ValueError: the objective does not pack, or the model mixes samples, counts positions through, or does not take
            such a batch; says to set packing to false.
    """
    if not objective.packs:
        raise ValueError(f"packing: {objective.name} cannot share rows between samples; set packing to false")
    try:
        problem = _problem(model, objective)
    except REFUSALS as error:
        problem = f"does not take them ({' '.join(str(error).split())[:200]})"
    if problem:
        raise ValueError(
            f"packing: {type(model).__name__} cannot keep samples that share a row apart: it {problem}. "
            "Set packing to false"
        )


def _problem(model: Any, objective: Objective) -> str | None:
    length = SHORT
    if "attention_mask" in _batch(objective, length, 0).inputs:  # of who sees whom: it must keep sliding windows too
        width = window(model.config.get_text_config()) or 0
        length = max(SHORT, min(width + 3, objective.max_length - 1))
    with asking(model):
        logits = [_logits(model, _batch(objective, length, change)) for change in (0, 1, 2)]
        alone = _logits(model, _batch(objective, length, 0, packed=False))
    first, second = slice(0, length), slice(length, 2 * length + 1)
    for name, packed in logits[0].items():
        scale = float(packed.abs().max())
        for seen, changed in ((second, 1), (first, 2)):
            if float((packed - logits[changed][name])[0, seen].abs().max()) > LEAK * scale:
                return "lets one see the tokens of another"
        apart = max(
            float((packed[0, first] - alone[name][0, first]).abs().max()),
            float((packed[0, second] - alone[name][1, : length + 1]).abs().max()),
        )
        if not apart <= CLOSE[min(4, _number_type(model).itemsize)] * scale:
            return f"gives them other logits than alone (by {apart:.2g}, the largest being {scale:.2g})"
    return None


def _number_type(model: Any) -> torch.dtype:
    dtypes: list[torch.dtype] = [parameter.dtype for parameter in model.parameters()]
    return next(dtype for dtype in dtypes if dtype.is_floating_point)


def _batch(objective: Objective, length: int, changed: int, packed: bool = True) -> Batch:
    """Samples of `length` and `length` + 1 tokens; the `changed` one of them, 1 or 2, holds other tokens."""
    tokens = ordinary_tokens(objective.tokenizer, 4 * length + 2)
    ids = [tokens[:length], tokens[length : 2 * length + 1]]
    if changed:
        ids[changed - 1] = tokens[2 * length + 1 :][: len(ids[changed - 1])]
    samples = [Sample(part, [0.0] + [1.0] * (len(part) - 1), len(part) // 2) for part in ids]
    return objective.batch(Samples.of(samples), [[0, 1]] if packed else [[0], [1]], Draw(0, EVALUATION))


def _logits(model: Any, batch: Batch) -> dict[str, Tensor]:
    outputs = forward(model, batch.to(next(model.parameters()).device))
    return {target.output: getattr(outputs, target.output).double() for target in batch.targets}
