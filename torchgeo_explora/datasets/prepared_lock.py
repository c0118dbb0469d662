"""One process at a time in a folder that is being prepared."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torchgeo_explora.datasets.prepared_manifest import PARTS

# Seconds: workers of a process that was killed end a little later than it.
_PATIENCE = 5.0


@contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Keep others from preparing into a folder, which is made.

    The lock ends with the processes that hold it, however they end.

    Args:
        folder: The folder.

    Raises:
        RuntimeError: If another process, or a worker of it, is at work there.
    """
    # Only Unix has it.
    import fcntl

    parts = os.path.join(folder, PARTS)
    os.makedirs(parts, exist_ok=True)
    with open(os.path.join(parts, 'lock'), 'w') as file:
        deadline = time.monotonic() + _PATIENCE
        # File systems without locks have errors of their own: nothing is known there.
        with suppress(OSError):
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise RuntimeError(
                            f'another process prepares into {folder}: wait until it'
                            f' ends, or give another *output*'
                        ) from error
                    time.sleep(0.05)
        yield
