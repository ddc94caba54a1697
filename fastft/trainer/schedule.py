"""Learning rate over a run: a pure function of the step."""

import math


def factor(kind: str, step: int, warmup_steps: float, total_steps: int) -> float:
    r"""What the peak learning rate is multiplied by at a step.

        step < W:   (step + 1) / (W + 1)
        constant:   1
        linear:     (T - step) / (T - W)
        cosine:     (1 + cos(pi (step - W) / (T - W))) / 2

    From step W on these are the schedules of transformers. Theirs begin at 0, so that a whole step is computed and
    not applied; here the same ramp begins one notch higher.

    Args:
        kind: `"constant"`, `"linear"` or `"cosine"`.
        step: optimizer steps taken before this one, in [0, T).
        warmup_steps: W; below 1 it is a share, `W = ceil(warmup_steps T)`.
        total_steps: T, the optimizer steps of the whole run.

    Raises:
        ValueError: an unknown kind.
    """
    warmup = math.ceil(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = max(0, total_steps - step) / max(1, total_steps - warmup)
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return left
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
    raise ValueError(f"lr_scheduler_type is {kind!r}; wanted constant, linear or cosine")
