"""Checkpoints: a delta file beside each, and a check of what is loaded."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from torchgeo_explora.adapt import base_fingerprint
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.writing import replacing


class DeltaCheckpointIO(CheckpointIO):
    """Write `name.safetensors` with each `name.ckpt`, and remove both together.

    A checkpoint on this machine goes to a temporary file beside it first and is then
    renamed, so that a full disk or an interruption leaves the previous file whole.
    Other places, such as `s3://bucket/name.ckpt`, are left to *inner*, and the delta
    follows to the same place.

    Args:
        inner: What writes the checkpoint itself. Lightning's default copies it twice
            in memory first: with it as *inner*, a local file is written directly.
        save_delta: Writes the current delta to a path.

    Raises:
        ValueError: If *inner* writes in the background.
    """

    def __init__(self, inner: CheckpointIO, save_delta: Callable[[Path], None]) -> None:
        """Wrap *inner*."""
        if isinstance(inner, AsyncCheckpointIO):
            raise ValueError(
                'AsyncCheckpointIO writes in the background, and a checkpoint and its'
                ' delta must be written together: remove it from trainer.plugins'
                ' (a checkpoint without the base is small)'
            )
        self.inner = inner
        self.save_delta = save_delta

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the checkpoint and the delta."""
        files, place, delta = _beside(path)
        if not isinstance(files, LocalFileSystem):
            self.inner.save_checkpoint(checkpoint, path, storage_options)
            _put(files, self.save_delta, delta)
            return
        # A subclass of Lightning's default may do anything.
        direct = type(self.inner) is TorchCheckpointIO and storage_options is None
        with replacing(place) as part:
            if direct:
                # The bytes of an archive written by name depend on the name.
                with part.open('wb') as file:
                    torch.save(checkpoint, file)
            else:
                self.inner.save_checkpoint(checkpoint, part, storage_options)
        self.save_delta(Path(delta))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Read a checkpoint."""
        return self.inner.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the checkpoint and the delta."""
        self.inner.remove_checkpoint(path)
        files, _, delta = _beside(path)
        if files.exists(delta):
            files.rm_file(delta)

    def teardown(self) -> None:
        """Let *inner* finish."""
        self.inner.teardown()


def without_delta(io: CheckpointIO) -> CheckpointIO:
    """Return the checkpoint writer without the delta of an earlier task."""
    return io.inner if isinstance(io, DeltaCheckpointIO) else io


def write_to(folder: str, name: str, write: Callable[[Path], None]) -> tuple[str, int]:
    """Write a file into a folder that may be on another machine.

    Args:
        folder: A path, or an address that fsspec knows, such as `s3://bucket/run`.
        name: The file's name.
        write: Writes the file to a local path.

    Returns:
        Where it is, and its size in bytes.
    """
    files, place = url_to_fs(folder)
    target = str(PurePosixPath(place) / name)
    if isinstance(files, LocalFileSystem):
        write(Path(target))
    else:
        _put(files, write, target)
    return f'{folder.rstrip("/")}/{name}', files.size(target)


def _put(files: Any, write: Callable[[Path], None], target: str) -> None:
    """Write a file here, and put it on another file system."""
    with TemporaryDirectory() as folder:
        part = Path(folder) / PurePosixPath(target).name
        write(part)
        files.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
        files.put_file(str(part), target)


def _beside(path: str | Path) -> tuple[Any, str, str]:
    """Return the file system of a checkpoint, its name there, and its delta's."""
    files, place = url_to_fs(str(path))
    return files, place, str(PurePosixPath(place).with_suffix('.safetensors'))


def identity(backbone: Backbone) -> dict[str, Any]:
    """Return what a delta belongs to: the base, and the bands of spectral groups."""
    groups = backbone.arguments.get('groups')
    return {
        'base': base_fingerprint(backbone),
        'groups': groups and [list(group) for group in groups],
    }


def require_fit(
    checkpoint: Mapping[str, Any], expected: Mapping[str, Any], keys: AbstractSet[str]
) -> dict[str, Any]:
    """Return what a task stored in a checkpoint beside the tensors.

    Args:
        checkpoint: As read from the file.
        expected: `identity` of this task's backbone.
        keys: Names of the tensors that this task keeps.

    Raises:
        ValueError: If no task of ours wrote the checkpoint, or the base or the task is
            another one.
    """
    saved: dict[str, Any] | None = checkpoint.get('explora')
    if saved is None:
        raise ValueError(
            'this checkpoint was not written by a task of torchgeo_explora: load'
            ' backbone weights through *weights* instead'
        )
    if saved['base'] != expected['base']:
        raise ValueError(
            f'the checkpoint was trained on base {str(saved["base"])[:12]}, this task'
            f' has base {str(expected["base"])[:12]}: give the same *model* and'
            ' *weights* (a checkpoint does not know weights loaded inside *model*)'
        )
    if saved['groups'] != expected['groups']:
        raise ValueError(
            f'the checkpoint was trained on the spectral groups {saved["groups"]}, this'
            f' task has {expected["groups"]}: give the same *model*'
        )
    found = checkpoint['state_dict'].keys()
    if keys != found:
        raise ValueError(
            'the checkpoint does not fit this task: missing'
            f' {sorted(keys - found)[:5]}, unexpected'
            f' {sorted(found - keys)[:5]}; give the arguments it was made with'
        )
    return saved
