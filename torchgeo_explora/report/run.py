"""What is known about a run from the files in its folder."""

import csv
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from torchgeo_explora.adapt import read_delta
from torchgeo_explora.callbacks.cost import read_cost
from torchgeo_explora.report.events import read_events
from torchgeo_explora.terminal import printable

#: Largest text that is read whole, in bytes.
_LARGEST = 2_000_000
#: The delta of a finished run, and those of one that is still going.
_DELTAS = ('delta.safetensors', 'last.safetensors', 'best.safetensors')


@dataclass
class Run:
    """A run, as far as it is known from its folder.

    Attributes:
        folder: Where it is.
        config_path: The newest `config.yaml`, None if there is none.
        config_text: Its text, '' if there is none.
        config: The same, parsed; {} if that is not possible.
        curves: Values by optimizer step, by the name of the metric.
        delta: The file of the delta, None if there is none.
        metadata: The delta's metadata; {} if there is none.
        tensors: The delta's tensors.
        cost: What `read_cost` returned.
        problems: What could not be read, in sentences.
    """

    folder: Path
    config_path: Path | None = None
    config_text: str = ''
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    delta: Path | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return printable(self.folder.resolve().name, 100)

    @property
    def task(self) -> str:
        """Class of the task, without its module; '' if it is not known."""
        path = self.setting('model.class_path')
        return printable(path, 200).rpartition('.')[2] if path else ''

    @property
    def pretraining(self) -> bool:
        """Whether it adapted a backbone without labels."""
        known = self.task in ('ExploraDinoTask', 'ExploraMAETask')
        return known or 'planned_steps' in self.metadata

    def setting(self, name: str) -> Any:
        """Return a value of the configuration, such as 'trainer.max_steps'."""
        value: Any = self.config
        for part in name.split('.'):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    @property
    def steps(self) -> int | None:
        """Optimizer steps done, as far as the files say; None if none does."""
        known = [number(self.cost.get('steps')), number(self.metadata.get('steps'))]
        known += [max(curve) for curve in self.curves.values() if curve]
        return max((int(each) for each in known if each is not None), default=None)

    @property
    def planned(self) -> int | None:
        """Optimizer steps planned; None if no file says."""
        for value in (
            self.cost.get('planned_steps'),
            self.metadata.get('planned_steps'),
            self.setting('trainer.max_steps'),
        ):
            found = number(value)
            if found is not None and found > 0:
                return int(found)
        return None

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        if not self.pretraining:
            return self.setting('trainer') is None or bool(self.curves)
        done = self.delta is not None and self.delta.name == _DELTAS[0]
        enough = self.steps is None or self.planned is None
        return done and (enough or (self.steps or 0) >= (self.planned or 0))

    def curve(self, name: str) -> dict[int, float]:
        """Return the finite values of a metric by optimizer step, {} if not logged."""
        return dict(sorted(self.curves.get(name, {}).items()))


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read the folder of a run; anything damaged is listed in its problems.

    Only files in the folder are opened. A run that is still going can be read.

    Args:
        folder: The trainer's root folder.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If it has none of the files that a run leaves.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(
            f'no folder {folder}: give the folder of a run (trainer.default_root_dir)'
        )
    run = Run(folder)
    _read_config(run)
    _read_curves(run)
    _read_histories(run)
    _read_delta(run)
    try:
        run.cost = read_cost(folder)
    except (OSError, ValueError) as error:
        run.problems.append(str(error))
    left = [*folder.glob('*.ckpt'), *folder.glob('*.csv'), *folder.glob('*.png')]
    if not (run.config_path or run.curves or run.delta or run.cost or left):
        raise ValueError(
            f'{folder} has none of the files that a run leaves (config.yaml, event'
            ' files, metrics.csv, delta.safetensors, cost.json): give the folder of a'
            ' run (trainer.default_root_dir)'
        )
    return run


def number(value: Any) -> float | None:
    """Return a finite number from a file, which may be written as text; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _read_config(run: Run) -> None:
    found = [*run.folder.glob('config.yaml'), *run.folder.glob('*/*/config.yaml')]
    if not found:
        run.problems.append(
            'No config.yaml was found: it is written if the run is started by'
            ' `explora fit`. The recipe is what the delta records.'
        )
        return
    run.config_path = max(found, key=lambda path: (path.stat().st_mtime, str(path)))
    try:
        with run.config_path.open('rb') as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f'longer than {_LARGEST} bytes')
        run.config_text = content.decode('utf-8', 'replace')
        config = yaml.safe_load(run.config_text)
        if not isinstance(config, dict):
            raise ValueError('not a mapping')
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        run.problems.append(
            f'{run.config_path.name} cannot be read ({printable(error, 200)}).'
        )
        return
    run.config = config


def _read_curves(run: Run) -> None:
    """Read TensorBoard's events and the tables of a CSVLogger, oldest first."""
    for path in sorted(
        {*run.folder.glob('**/events.out.tfevents.*')},
        key=lambda path: (path.stat().st_mtime, str(path)),
    ):
        # The events of `explora analyze` have blocks where those of a run have steps.
        if 'analysis' in path.relative_to(run.folder).parts:
            continue
        curves, problem = read_events(path)
        _add(run, curves)
        if problem:
            run.problems.append(problem)
    for path in sorted(run.folder.glob('**/metrics.csv')):
        try:
            _add(run, _of_table(path))
        except (OSError, ValueError, csv.Error) as error:
            run.problems.append(f'{path.name} cannot be read ({error}).')
    for name, curve in run.curves.items():
        if name == 'knn' or name.startswith('quality/'):
            run.curves[name] = _without_repeats(curve)
    if not run.curves:
        run.problems.append(
            'No curves were found: neither TensorBoard event files nor metrics.csv.'
            ' A run without a logger (trainer.logger=false) has none.'
        )


def _without_repeats(curve: dict[int, float]) -> dict[int, float]:
    """Return a curve without the values that a logger repeats between evaluations."""
    points = sorted(curve.items())
    return {
        step: value
        for index, (step, value) in enumerate(points)
        if index in (0, len(points) - 1) or value != points[index - 1][1]
    }


def _read_histories(run: Run) -> None:
    """Read what callbacks measured from the last checkpoint, if there is one.

    A logger may leave out some measurements, such as the last.
    """
    path = run.folder / 'last.ckpt'
    if not path.is_file():
        return
    try:
        # Even if the file is large, only the few numbers are read.
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        callbacks = dict(content['callbacks'])
        measured: dict[str, dict[int, float]] = {}
        for step, value in _history(callbacks, 'OnlineKNN').items():
            measured.setdefault('knn', {})[int(step)] = float(value)
        for step, values in _history(callbacks, 'LabelFreeQuality').items():
            for name, value in values.items():
                measured.setdefault(f'quality/{name}', {})[int(step)] = float(value)
    # A damaged file, or one that is being written, may raise anything.
    except Exception as error:  # noqa: BLE001
        kind = type(error).__name__
        run.problems.append(f'{path.name} cannot be read as a checkpoint ({kind}).')
        return
    for name, history in measured.items():
        last = max(history, default=-1)
        logged = run.curves.get(name, {})
        later = {step: value for step, value in logged.items() if step > last}
        run.curves[printable(name, 100)] = {
            step: value
            for step, value in {**history, **later}.items()
            if math.isfinite(value)
        }


def _history(callbacks: dict[str, Any], kind: str) -> dict[Any, Any]:
    """Return what a callback measured, by step."""
    # Lightning's key may have a callback's arguments after its name.
    found = [state for key, state in callbacks.items() if key.startswith(kind)]
    return dict(found[0]['history']) if found else {}


def _add(run: Run, curves: Mapping[str, Mapping[int, float]]) -> None:
    for name, curve in curves.items():
        run.curves.setdefault(printable(name, 100), {}).update(curve)


def _of_table(path: Path) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    with path.open(newline='', errors='replace') as file:
        for row in csv.DictReader(file):
            step = number(row.get('step'))
            if step is None:
                continue
            for name, text in row.items():
                value = number(text)
                if name not in ('step', 'epoch') and value is not None:
                    curves.setdefault(str(name), {})[int(step)] = value
    return curves


def _read_delta(run: Run) -> None:
    for path in _deltas(run.folder):
        try:
            run.metadata, run.tensors = read_delta(path)
        except (OSError, ValueError) as error:
            run.problems.append(f'{path.name}: {printable(error, 300)}')
            continue
        run.delta = path
        return
    # Probes train no part of the backbone.
    if run.task in ('', 'ExploraDinoTask', 'ExploraMAETask'):
        run.problems.append(
            'There is no delta (*.safetensors) in the folder: a run writes one with its'
            ' first checkpoint and at its end.'
        )


def _deltas(folder: Path) -> Iterator[Path]:
    for name in _DELTAS:
        if (folder / name).is_file():
            yield folder / name
