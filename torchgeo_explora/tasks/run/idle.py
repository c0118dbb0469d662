"""How much of the time a device has nothing to do."""

import time
from typing import Any

import torch


class IdleClock:
    """The share of a run that lies between the end of a step and the begin of the next.

    There a device waits for data. On a GPU the share is that of its own time line: what
    the CPU has given it ahead counts as work, however long the CPU waits. What
    callbacks do when a step has ended is part of the step.

    Args:
        device: Where the steps are done.
    """

    def __init__(self, device: torch.device) -> None:
        """Have seen no step."""
        self.device = device
        self.marks: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the marks: a GPU's can be neither copied nor kept."""
        return {'device': self.device, 'marks': []}

    def begin(self) -> None:
        """Mark the begin of a step."""
        if self.marks:
            self.marks.append(self._now())

    def end(self) -> float | None:
        """Mark the end of a step.

        Returns:
            For the step *before*, from the end of the one before that: the share, in
            [0, 1], in which nothing was done. None where there is no such step yet. The
            step that ends now may still be under way on a GPU.
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
