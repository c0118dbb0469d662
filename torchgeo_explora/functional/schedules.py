"""Values that depend on the optimizer step: rate, momentum, temperature.

DINOv2 tabulates them and reads the entry *step*; these functions compute that entry. An
objective that only knows its progress uses step round(progress * total).
"""

import math


def cosine_schedule(
    step: int,
    total: int,
    start: float,
    end: float,
    warmup: int = 0,
    warmup_start: float = 0.0,
) -> float:
    """Return the value at *step* of a linear warm-up followed by a cosine (DINOv2).

    The warm-up reaches *start* at its last step and the cosine begins with it, so the
    values at warmup - 1 and at warmup are equal. *end* is reached at step *total*; the
    last step of a run comes close to it.

    Args:
        step: Optimizer steps done, from 0.
        total: Optimizer steps planned.
        start: Value after the warm-up.
        end: Value from step *total* on.
        warmup: Steps of the warm-up, which are part of *total*.
        warmup_start: Value at step 0 if there is a warm-up.
    """
    if step >= total:
        return end
    if step < warmup:
        return linear_warmup(step, warmup, warmup_start, start)
    angle = math.pi * (step - warmup) / (total - warmup)
    return end + (start - end) * (1 + math.cos(angle)) / 2


def linear_warmup(step: int, warmup: int, start: float, end: float) -> float:
    """Return the value at *step* of a line that reaches *end* at step warmup - 1.

    DINOv2's teacher temperature follows it. A warm-up of one step has the value
    *start*, as in DINOv2's table.

    Args:
        step: Optimizer steps done, from 0.
        warmup: Steps of the warm-up; with 0, the value is *end* from the start.
        start: Value at step 0.
        end: Value from step warmup - 1 on.
    """
    if step >= warmup:
        return end
    return start + (end - start) * step / max(1, warmup - 1)
