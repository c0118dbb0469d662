"""Checkpoints: a delta file beside each, and a check of what is loaded."""

import hashlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from torchgeo_explora.adapt import base_fingerprint
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.terminal import printable
from torchgeo_explora.writing import put, replacing


class DeltaCheckpointIO(CheckpointIO):
    """Write `name.safetensors` with each `name.ckpt`, and remove both together.

    On this machine both are written to temporary files first. The delta is renamed
    before the checkpoint, so that a full disk or an interruption never leaves a
    checkpoint without its delta. The checkpoint ends with its SHA-256, which
    `require_whole` checks. Remote checkpoints, such as `s3://bucket/name.ckpt`, are
    left to *inner*, and the delta is copied to the same place.

    Args:
        inner: Writes the checkpoint itself. Lightning's default first copies it twice
            in memory: if it is *inner*, a local file is written directly instead.
        save_delta: Writes the current delta to a path; None for a task without a delta,
            whose checkpoints are written and read in the same way.

    Raises:
        ValueError: If *inner* writes in the background, and there is a delta.
    """

    def __init__(
        self, inner: CheckpointIO, save_delta: Callable[[Path], None] | None
    ) -> None:
        """Wrap *inner*."""
        if save_delta is not None and isinstance(inner, AsyncCheckpointIO):
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
        """Write the checkpoint and the delta.

        Raises:
            OSError: If one of them cannot be written; the checkpoint that was there
                stays.
            ValueError: If the delta would have the checkpoint's own name.
        """
        files, place, delta = _beside(path)
        if self.save_delta is not None and place == delta:
            raise ValueError(
                f'the delta beside the checkpoint {path} would have the same name:'
                f' call the checkpoint {PurePosixPath(place).stem}.ckpt'
            )
        if not isinstance(files, LocalFileSystem):
            self.inner.save_checkpoint(checkpoint, path, storage_options)
            if self.save_delta is not None:
                put(files, self.save_delta, delta)
            return
        if isinstance(self.inner, AsyncCheckpointIO):
            self.inner.save_checkpoint(checkpoint, path, storage_options)
            return
        # A subclass of Lightning's default may do something else.
        direct = type(self.inner) is TorchCheckpointIO and storage_options is None
        with replacing(place) as part:
            if direct:
                # The bytes of an archive saved by path depend on the file's name.
                with part.open('wb') as file:
                    torch.save(checkpoint, file)
            else:
                self.inner.save_checkpoint(checkpoint, part, storage_options)
            _seal(part)
            if self.save_delta is not None:
                self.save_delta(Path(delta))

    def renew_delta(self, path: str | Path, current: Callable[[Path], bool]) -> None:
        """Write the delta beside a checkpoint, if it is missing or does not match.

        Args:
            path: The checkpoint, which the task has just loaded.
            current: Returns whether a delta file is the one that the task would write
                now.
        """
        if self.save_delta is None:
            return
        files, _, delta = _beside(path)
        if not isinstance(files, LocalFileSystem):
            if not files.exists(delta):
                put(files, self.save_delta, delta)
        elif not current(Path(delta)):
            try:
                self.save_delta(Path(delta))
            except OSError as error:
                rank_zero_warn(f'the delta of {path} could not be written: {error}')
            else:
                rank_zero_info(
                    f'{delta} was missing or did not match {path}: it was written again'
                )

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Read a checkpoint.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged, or does not hold what a trainer writes.
        """
        require_whole(path)
        try:
            checkpoint = self.inner.load_checkpoint(path, *args, **kwargs)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'*ckpt_path* {path} does not exist: give a .ckpt file of a run'
            ) from error
        files, place, _ = _beside(path)
        # Checkpoints that are folders come from other writers.
        if isinstance(files, LocalFileSystem) and Path(place).is_file():
            require_form(checkpoint, path)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the checkpoint and the delta."""
        self.inner.remove_checkpoint(path)
        files, _, delta = _beside(path)
        if self.save_delta is not None and files.exists(delta):
            files.rm_file(delta)

    def teardown(self) -> None:
        """Let *inner* finish."""
        self.inner.teardown()


def without_delta(io: CheckpointIO) -> CheckpointIO:
    """Return a checkpoint writer without the wrapper of an earlier task."""
    return io.inner if isinstance(io, DeltaCheckpointIO) else io


def _beside(path: str | Path) -> tuple[Any, str, str]:
    """Return the file system of a checkpoint, its path there and its delta's."""
    files, place = url_to_fs(str(path))
    # Only a final `.ckpt` is replaced: `run-v1.5` and `run-v1.7` have a delta each.
    suffix = '.safetensors'
    stem = place.removesuffix('.ckpt')
    return files, place, stem if stem.endswith(suffix) else stem + suffix


#: A checkpoint ends with this and 64 digits, as the comment of its ZIP archive.
_MARK = b'sha256:'
_SEAL = len(_MARK) + 64
#: Bytes of the record that ends a ZIP archive without a comment.
_END = 22


def _seal(path: Path) -> None:
    """Append its SHA-256 to a checkpoint, so that torch and others still read it."""
    if not path.is_file():
        return
    with path.open('r+b') as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END))
        end = file.read()
        # Anything but an archive without a comment is left unchanged.
        if len(end) < _END or end[:4] != b'PK\5\6' or end[-2:] != b'\0\0':
            return
        file.seek(size - 2)
        file.write(struct.pack('<H', _SEAL))
        file.seek(0)
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
        file.seek(0, 2)
        file.write(_MARK + digest.encode())


def require_whole(path: str | Path) -> None:
    """Raise if a checkpoint on this machine is damaged.

    A checkpoint with a SHA-256 at its end is checked against that; in any other, such
    as one that Lightning wrote, each part is checked against the archive's checksum.

    Raises:
        ValueError: If the bytes are not those that were written.
    """
    files, place = url_to_fs(str(path))
    # Folders come from other writers; Lightning reports a missing file.
    if not isinstance(files, LocalFileSystem) or not Path(place).is_file():
        return
    advice = 'copy it again, or continue from another checkpoint'
    with Path(place).open('rb') as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _SEAL))
        seal = file.read()
        if seal.startswith(_MARK):
            file.seek(0)
            digest = hashlib.sha256()
            for start in range(0, size - _SEAL, 1 << 20):
                digest.update(file.read(min(1 << 20, size - _SEAL - start)))
            if digest.hexdigest().encode() == seal[len(_MARK) :]:
                return
            raise ValueError(
                f'{place} is damaged: its SHA-256 does not match; {advice}'
            )
    try:
        with zipfile.ZipFile(place) as archive:
            wrong = archive.comment or archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise ValueError(
            f'{place} is cut short or is not a checkpoint ({error}); {advice}'
        ) from error
    if wrong:
        raise ValueError(f'{place} is damaged: a checksum differs; {advice}')


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _are_mappings(values: Any, *keys: str) -> bool:
    return isinstance(values, list) and all(
        isinstance(each, Mapping) and {*keys} <= {*each} for each in values
    )


def _has_mappings(value: Any, *keys: str) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(key), Mapping) for key in keys
    )


# What a trainer writes: a test of the value, and what was expected.
_FORM: dict[str, tuple[Callable[[Any], bool], str]] = {
    'epoch': (_is_count, 'a number'),
    'global_step': (_is_count, 'a number'),
    'pytorch-lightning_version': (
        lambda value: isinstance(value, str) and value[:1].isdigit(),
        'a version',
    ),
    'state_dict': (
        lambda value: (
            isinstance(value, Mapping)
            and all(isinstance(tensor, torch.Tensor) for tensor in value.values())
        ),
        'tensors by name',
    ),
    'loops': (lambda value: _has_mappings(value, 'fit_loop'), 'states of loops'),
}
# Missing if only the weights were saved.
_RESUMABLE: dict[str, tuple[Callable[[Any], bool], str]] = {
    'callbacks': (lambda value: _has_mappings(value), 'states by callback'),
    'optimizer_states': (
        lambda value: _are_mappings(value, 'state', 'param_groups'),
        'states of optimizers',
    ),
    'lr_schedulers': (_are_mappings, 'states of schedules'),
}
# Not written by every version and task.
_OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    'explora': (
        lambda value: (
            isinstance(value, Mapping)
            and {'base', 'groups', 'micro_steps'} <= {*value}
            and _is_count(value['micro_steps'])
        ),
        'what the task was trained on',
    ),
    'hyper_parameters': (lambda value: _has_mappings(value), 'arguments by name'),
    'layout': (
        lambda value: (
            isinstance(value, Mapping)
            and all(
                _is_count(value.get(n)) for n in ('batch', 'accumulated', 'devices')
            )
        ),
        'numbers of images and devices',
    ),
}


def require_form(checkpoint: Any, path: str | Path) -> None:
    """Raise unless a checkpoint has the parts that a trainer writes.

    Args:
        checkpoint: As read from the file.
        path: The file.

    Raises:
        ValueError: If a part is missing or of another kind.
    """
    advice = (
        'give a .ckpt file that a run has written, or backbone weights as *weights*'
    )
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f'{path} holds a {type(checkpoint).__name__}, expected a checkpoint:'
            f' {advice}'
        )
    expected = dict(_FORM)
    if not _RESUMABLE.keys().isdisjoint(checkpoint):
        expected |= _RESUMABLE
    if missing := [name for name in expected if name not in checkpoint]:
        raise ValueError(
            f'{path} is not a checkpoint of a trainer: it has no'
            f' {", ".join(missing)}; {advice}'
        )
    for name, (good, words) in {**expected, **_OPTIONAL}.items():
        if name in checkpoint and not good(checkpoint[name]):
            raise ValueError(
                f'{path} has {name} {printable(checkpoint[name], 60)}, expected'
                f' {words}: {advice}'
            )


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
    """Return what a task stored in a checkpoint in addition to the tensors.

    Args:
        checkpoint: As read from the file.
        expected: `identity` of this task's backbone.
        keys: Names of the tensors that this task keeps.

    Raises:
        ValueError: If the checkpoint was not written by a task of this package, or has
            another base or task.
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
            ' *weights* (a checkpoint does not record weights loaded inside *model*)'
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


def require_values(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    """Raise unless tensors are finite and have the shapes of those they will replace.

    Args:
        found: Tensors of a checkpoint, with the same names.
        expected: Tensors of a task.

    Raises:
        ValueError: If one of them does not fit; nothing has been changed yet.
    """
    for name, tensor in found.items():
        shapes = tuple(tensor.shape), tuple(expected[name].shape)
        if shapes[0] != shapes[1]:
            raise ValueError(
                f'the checkpoint has {name} of shape {shapes[0]}, this task needs'
                f' {shapes[1]}; give the arguments it was made with'
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f'the checkpoint has values in {name} that are not finite: continue'
                ' from an earlier one'
            )
