"""Curves from a TensorBoard event file, whole or cut short."""

import logging
import math
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_events(path: Path) -> tuple[dict[str, dict[int, float]], str | None]:
    """Return the finite scalars of an event file, by name and step.

    A file that is still being written, or was cut short, gives what it has so far.

    Args:
        path: The file.

    Returns:
        The curves, and what is wrong with the file in a sentence; None if nothing is.
    """
    # All scalars; of everything else, such as figures, as little as possible.
    kinds = ('images', 'audio', 'histograms', 'compressedHistograms', 'tensors')
    accumulator: Any = EventAccumulator(
        str(path), size_guidance={'scalars': 0, **dict.fromkeys(kinds, 1)}
    )
    problem = None
    # TensorBoard reports damage only to its log.
    log = logging.getLogger('tensorboard')
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        accumulator.Reload()
    # The reader may raise anything for a damaged file.
    except Exception as error:  # noqa: BLE001
        kind = type(error).__name__
        problem = f'{path.name} is damaged ({kind}): its curves may stop early.'
    finally:
        log.setLevel(level)
    curves: dict[str, dict[int, float]] = {}
    for name in accumulator.Tags()['scalars']:
        values = {
            int(event.step): float(event.value)
            for event in accumulator.Scalars(name)
            if math.isfinite(event.value)
        }
        if values:
            curves[name] = values
    if not curves and problem is None:
        problem = (
            f'{path.name} has no curves: the run has logged nothing yet, or the file is'
            ' cut short.'
        )
    return curves, problem
