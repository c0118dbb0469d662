"""How much of the time a device is idle."""

import time
from typing import Any

import torch


class IdleClock:
    """The share of a run between the end of one step and the start of the next.

    In that time a device waits for data. On a GPU the share is measured on its own
    timeline: work that the CPU has queued counts as work, however long the CPU waits.
    What callbacks do at the end of a step is part of the step.

    Args:
        device: Where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        """Start with no marks."""
        self.device = device
        self.marks: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the marks: those of a GPU can be neither copied nor stored."""
        return {'device': self.device, 'marks': []}

    def begin(self) -> None:
        """Mark the start of a step."""
        if self.marks:
            self.marks.append(self._now())

    def end(self) -> float | None:
        """Mark the end of a step.

        Returns:
            The idle share, in [0, 1], of the time from the end of the step before last
            to the end of the last one; None until there are two. The step that ends now
            may still be running on a GPU.
        """
        self.marks.append(self._now())
        if len(self.marks) < 5:
            return None
        before, begin, end, *_ = self.marks
        del self.marks[:2]
        whole = self._between(before, end)
        return self._between(before, begin) / whole if whole > 0 else 0.0

    def _now(self) -> Any:
        if self.device.type != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, before: Any, now: Any) -> float:
        if self.device.type != 'cuda':
            return now - before
        now.synchronize()
        return before.elapsed_time(now)
