"""Predictions that are written batch by batch, and joined at the end."""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from torchgeo_explora.adapt import base_fingerprint, delta_state_dict, fingerprint
from torchgeo_explora.paths import local_path, require_writable


class PartWriter(BasePredictionWriter):
    """Write each batch of predictions to its own file, and join them at the end.

    The files are in a hidden folder beside the result, and are joined in a fixed order.
    If the data module numbers its parts, a run that was killed continues where it
    stopped and gives the same file, and several processes can share the work. The name
    of the folder depends on the model, the data and the settings, so that parts of
    another run are never used; parts are deleted when the result is complete.

    A subclass writes a part in `write_on_batch_end`, and the result in `join`.

    Args:
        path: The file, on this machine; `file` in the trainer's root folder if None.

    Raises:
        ValueError: If it is an address, such as `s3://bucket/name`.
    """

    #: Name of the result if no path is given.
    file: str
    #: Suffix of a part.
    suffix: str

    def __init__(self, path: str | Path | None = None) -> None:
        """Write while predicting."""
        super().__init__(write_interval='batch')
        self.path = None if path is None else local_path('path', path)
        self._folder: Path | None = None

    def state(self, trainer: Trainer, pl_module: Any) -> list[Any]:
        """Return what the parts depend on besides the model, as JSON values."""
        raise NotImplementedError

    def join(self, trainer: Trainer, pl_module: Any, parts: list[Path]) -> None:
        """Write the result from the parts, in their order."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the data module skip finished parts.

        Raises:
            OSError: If the result cannot be written.
            ValueError: If its place is on another machine.
        """
        self.find_target(trainer)
        datamodule: Any = getattr(trainer, 'datamodule', None)
        if hasattr(datamodule, 'finished'):
            # Called when the loader is made: the model has its checkpoint by then.
            # Lightning need not know which samples are in a part.
            warnings.filterwarnings('ignore', "Couldn't infer the batch indices")
            datamodule.finished = lambda: self._finished(trainer, pl_module)

    def find_target(self, trainer: Trainer) -> None:
        """Find the path of the result.

        Raises:
            OSError: If it cannot be written.
            ValueError: If it is on another machine.
        """
        self.target = self.path or self._default_target(trainer)
        require_writable(self.target.parent)
        if self.target.is_dir():
            raise IsADirectoryError(
                f'{self.target} is a folder: give the name of a file'
            )

    def _default_target(self, trainer: Trainer) -> Path:
        folder = os.fspath(trainer.default_root_dir)
        if '://' in folder:
            raise ValueError(
                f'the parts of {self.file} are joined on this machine, and the root'
                f' folder of the trainer, {folder}, is on another one: give a file here'
                f' as *path* of {type(self).__name__}, among the callbacks'
            )
        return Path(folder) / self.file

    def part(self, number: int) -> Path:
        """Return the file of a part."""
        assert self._folder is not None
        return self._folder / f'{number}{self.suffix}'

    def parts(self) -> dict[int, Path]:
        """Return the files that are there, by their numbers and in this order."""
        assert self._folder is not None
        found = {int(p.stem): p for p in self._folder.glob(f'[0-9]*{self.suffix}')}
        return dict(sorted(found.items()))

    def _finished(self, trainer: Trainer, pl_module: Any) -> set[int]:
        """Return the numbers of the finished parts."""
        state = json.dumps(
            [
                fingerprint(delta_state_dict(pl_module)),
                base_fingerprint(pl_module.backbone),
                *(str(dict(pl_module.hparams)), trainer.precision),
                *(pl_module.mean, pl_module.std),
                *self.state(trainer, pl_module),
            ],
            default=str,
        )
        digest = hashlib.sha256(state.encode()).hexdigest()[:16]
        self._folder = self.target.with_name(f'.{self.target.name}.{digest}.parts')
        self._folder.mkdir(exist_ok=True)
        done = set(self.parts())
        # No process writes before all have looked.
        trainer.strategy.barrier('parts listed')
        if done:
            rank_zero_info(f'{self.target}: {len(done)} parts are already done')
        return done

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove earlier parts, if the data module does not number its parts."""
        datamodule = getattr(trainer, 'datamodule', None)
        if hasattr(datamodule, 'finished'):
            return
        self.find_target(trainer)
        self._folder = self.target.with_name(f'.{self.target.name}.parts')
        self._folder.mkdir(exist_ok=True)
        for number, path in self.parts().items():
            # Numbered as by `number`: no process deletes what another one writes.
            if number % trainer.world_size == trainer.global_rank:
                path.unlink()

    def number(self, trainer: Trainer, batch: dict[str, Any], batch_idx: int) -> int:
        """Return the number of a batch's part."""
        if 'part' in batch:
            return int(batch['part'])
        return batch_idx * trainer.world_size + trainer.global_rank

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say how many parts an interrupted run has kept."""
        resumable = hasattr(getattr(trainer, 'datamodule', None), 'finished')
        if self._folder is None or not resumable or not trainer.is_global_zero:
            return
        if kept := len(self.parts()):
            rank_zero_info(
                f'{kept} parts of {self.target} are kept: repeat the command to'
                ' continue'
            )
            return
        # Another process may have written a part just now.
        with suppress(OSError):
            self._folder.rmdir()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the parts, unless other processes still work on theirs."""
        trainer.strategy.barrier('parts written')
        if not trainer.is_global_zero:
            return
        datamodule = getattr(trainer, 'datamodule', None)
        share: Sequence[int] = getattr(datamodule, 'share', (0, 1))
        if share[1] > 1:
            rank_zero_info(
                f'{len(self.parts())} of {len(datamodule.parts)} parts of'  # type: ignore[union-attr]
                f' {self.target} are done: when all are, repeat the command without'
                ' *share* to join them'
            )
            return
        self.join(trainer, pl_module, [*self.parts().values()])
        # Only this result's folders: another result's name may start with this one's.
        own = re.compile(rf'\.{re.escape(self.target.name)}(\.[0-9a-f]{{16}})?\.parts')
        for folder in self.target.parent.iterdir():
            if own.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
