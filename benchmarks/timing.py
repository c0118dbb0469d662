"""Clocks for the parts of a step, in the device's own time, and the matmul rate."""

import statistics
import time
from itertools import pairwise
from typing import Any

import torch


class Clock:
    """Charge the time since the last mark to a name.

    On a GPU the marks are CUDA events: they show the device's time, including gaps in
    which it waits for the CPU. Read them once the steps are over.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        """Start without any step."""
        self.device = device
        self.steps: list[list[tuple[str, Any]]] = []

    @property
    def last(self) -> str:
        """Name of the last mark."""
        return self.steps[-1][-1][0]

    def start(self) -> None:
        """Start a step."""
        self.steps.append([('start', self._now())])

    def mark(self, name: str) -> None:
        """End a part of the step; parts with the same name are added up."""
        self.steps[-1].append((name, self._now()))

    def milliseconds(self, skip: int = 0) -> dict[str, float]:
        """Return the median of each part over the steps, and of whole steps.

        Args:
            skip: Steps at the start that are not counted.
        """
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        rows = [self._parts(step) for step in self.steps[skip:]]
        return {name: _median([row[name] for row in rows]) for name in rows[0]}

    def _parts(self, step: list[tuple[str, Any]]) -> dict[str, float]:
        parts: dict[str, float] = {}
        for (_, before), (name, now) in pairwise(step):
            parts[name] = parts.get(name, 0.0) + self._between(before, now)
        return parts | {'step': self._between(step[0][1], step[-1][1])}

    def _now(self) -> Any:
        if self.device.type != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, before: Any, now: Any) -> float:
        if self.device.type != 'cuda':
            return 1000 * (now - before)
        return before.elapsed_time(now)


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def matmul_rate(
    device: torch.device, size: int, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """Measure a square matrix product of random numbers.

    Args:
        device: Where to measure.
        size: Rows and columns of both factors.
        dtype: Type of both factors.

    Returns:
        'size', 'ms' (median of ten) and 'tflops' (2 size^3 operations).
    """
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    clock = Clock(device)
    for _ in range(13):
        clock.start()
        left @ right
        clock.mark('product')
    # Unrounded: a product of the trial's size takes microseconds.
    found = clock.milliseconds(skip=3)['product']
    return {'size': size, 'ms': found, 'tflops': 2e-9 * size**3 / max(found, 1e-3)}
