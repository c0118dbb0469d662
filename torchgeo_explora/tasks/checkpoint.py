"""A delta file beside every checkpoint."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO


class DeltaCheckpointIO(CheckpointIO):
    """Write `name.safetensors` with each `name.ckpt`, and remove both together.

    A checkpoint goes to a temporary file first and is then renamed, so that a full
    disk or an interruption leaves the previous file whole.

    Args:
        inner: What writes the checkpoint itself.
        save_delta: Writes the current delta to a path.
    """

    def __init__(self, inner: CheckpointIO, save_delta: Callable[[Path], None]) -> None:
        """Wrap *inner*."""
        self.inner = inner
        self.save_delta = save_delta

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the checkpoint and the delta."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f'.{path.name}.part')
        try:
            self.inner.save_checkpoint(checkpoint, part, storage_options)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        self.save_delta(path.with_suffix('.safetensors'))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Read a checkpoint."""
        return self.inner.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the checkpoint and the delta."""
        self.inner.remove_checkpoint(path)
        Path(path).with_suffix('.safetensors').unlink(missing_ok=True)
