"""What a run of pre-training costs: time, images, operations, energy and carbon."""

import json
import math
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from torchgeo_explora.callbacks.cost.energy import DeviceMeter, MachineMeter
from torchgeo_explora.callbacks.cost.operations import FORMULA, image_operations
from torchgeo_explora.checks import require_positive
from torchgeo_explora.paths import expanded
from torchgeo_explora.writing import replacing, write_to

#: The file in the folder of a run.
FILE = 'cost.json'


class Cost(Callback):
    """Count what a run costs, and keep it in `cost.json`.

    Images and operations depend only on the run, and also go into the metadata of the
    delta. Time, energy and carbon depend on the machine. The file is written with each
    checkpoint and at the end, completely or not at all; a resumed run adds to what its
    checkpoint had.

    - device hours = wall time x devices, evaluations in between included;
    - energy = what codecarbon reports if *country* is given; otherwise what the GPUs
      report (NVML, with nvidia-ml-py installed); otherwise device hours x *power*;
    - carbon = energy x *intensity*.

    Args:
        power: Power of one device with its share of the machine, in W, for an estimate
            if nothing is measured; no estimate if None.
        intensity: Carbon intensity of the grid, in kg CO2e per kWh; no estimate if
            None.
        country: Three-letter ISO code, such as DEU: codecarbon measures the machine and
            knows the grid. It must be installed.
        folder: Where to write; the trainer's root folder if None. Both may be on
            another machine, such as `s3://bucket/run`.

    Attributes:
        images: Training images seen so far, over all devices.

    Raises:
        ValueError: If *power* or *intensity* is not positive, or *intensity* is given
            together with *country*.
    """

    def __init__(
        self,
        power: float | None = None,
        intensity: float | None = None,
        country: str | None = None,
        folder: str | Path | None = None,
    ) -> None:
        """Keep the settings."""
        for name, value in (('power', power), ('intensity', intensity)):
            if value is not None:
                require_positive(name, value)
        if intensity is not None and country is not None:
            raise ValueError(
                '*intensity* and *country* both set the carbon intensity of the grid:'
                ' give one of them'
            )
        self.power = power
        self.intensity = intensity
        self.country = country
        self.folder = folder
        self.images = 0
        self._operations: float | None = None  # of one image
        self._hook: Any = None
        # From before this start; the energy is None if any part was not measured.
        self._seconds = 0.0
        self._kwh: float | None = 0.0
        self._started: float | None = None
        self._meter: DeviceMeter | MachineMeter | None = None

    @property
    def tflop(self) -> float | None:
        """Operations so far in TFLOP, by the formula; None if it does not apply."""
        if self._operations is None:
            return None
        return self.images * self._operations / 1e12

    def metadata(self) -> dict[str, str]:
        """Return what a delta records: only what depends on nothing but the run."""
        tflop = {} if self.tflop is None else {'tflop': f'{self.tflop:.6g}'}
        return {'images': str(self.images), **tflop}

    @property
    def seconds(self) -> float:
        """Wall time of training so far."""
        now = self._started and time.monotonic() - self._started
        return self._seconds + (now or 0.0)

    def measured_kwh(self) -> float | None:
        """Return the energy so far on this machine, None if it was not measured."""
        if self._kwh is None or self._meter is None:
            return self._kwh
        return self._kwh + self._meter.kwh()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and the meter."""
        self._started = time.monotonic()
        if trainer.is_global_zero:
            devices = getattr(trainer.strategy, 'parallel_devices', None)
            self._meter = (
                MachineMeter(self.country)
                if self.country
                else DeviceMeter.of(devices or [trainer.strategy.root_device])
            )
        if self._meter is None:
            self._kwh = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the views of the first batch: their sizes set the operations."""
        objective: Any = getattr(pl_module, 'objective', None)
        augment = getattr(objective, 'augment', None)
        if self._operations is None and augment is not None:

            def count(module: Any, given: Any, views: Any) -> None:
                self._operations = image_operations(objective, views)

            self._hook = augment.register_forward_hook(count)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the images."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self.images += len(batch['image']) * trainer.world_size

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write what the run has cost so far."""
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print what the run has cost."""
        rank_zero_info(f'cost: {cost_line(self._write(trainer, pl_module))}')
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what an interrupted run has cost."""
        if self._started is not None:
            # The error that ends the run must be the one shown. Remote file systems
            # have errors of their own.
            with suppress(Exception):
                self._write(trainer, pl_module)
        self._stop()

    def _stop(self) -> None:
        """Stop the clock and the meter."""
        self._seconds, self._kwh = self.seconds, self.measured_kwh()
        if self._meter is not None:
            self._meter.stop()
        self._started = self._meter = None

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        content = self.summary(trainer, pl_module)
        if not trainer.is_global_zero:
            return content

        def write(path: Path) -> None:
            with replacing(path) as part:
                part.write_text(json.dumps(content, indent=2, allow_nan=False) + '\n')

        write_to(expanded(self.folder or trainer.default_root_dir), FILE, write)
        return content

    def summary(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the contents of `cost.json`."""
        planned = getattr(pl_module, 'planned_steps', 0)
        hours = self.seconds / 3600 * trainer.world_size
        measured = self.measured_kwh()
        energy = source = None
        # A meter sees one machine.
        if measured is not None:
            energy = measured * trainer.num_nodes
            source = getattr(self._meter, 'source', DeviceMeter.source)
        elif self.power is not None:
            energy = hours * self.power / 1000
            source = f'estimated: device hours x {self.power:g} W per device'
        known = getattr(self._meter, 'intensity', None)
        intensity = self.intensity if known is None else known
        carbon = None
        if energy is not None and intensity is not None:
            carbon = energy * intensity
        return {
            'steps': trainer.global_step,
            'planned_steps': planned,
            'images': self.images,
            'tflop': self.tflop,
            'tflop_formula': FORMULA,
            'wall_seconds': self.seconds,
            'device': _device_name(pl_module.device),
            'devices': trainer.world_size,
            'device_hours': hours,
            'energy_kwh': energy,
            'energy_source': source,
            'kg_co2e_per_kwh': intensity,
            'kg_co2e': carbon,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what the run has cost so far."""
        return {
            'images': self.images,
            'operations': self._operations,
            'seconds': self.seconds,
            'kwh': self.measured_kwh(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what an earlier part of the run has cost."""
        self.images = state_dict['images']
        self._operations = state_dict['operations']
        self._seconds = state_dict['seconds']
        self._kwh = state_dict['kwh']


def read_cost(folder: str | Path) -> dict[str, Any]:
    """Return the contents of `cost.json` in a folder, {} if there is no such file.

    Values of another kind than `Cost` writes are left out: text is kept only where it
    is expected, and numbers only if they are finite and not negative.

    Raises:
        ValueError: If the file is not one that `Cost` has written.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'{path} is damaged ({error}): remove it; continuing the run writes it'
            ' again'
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f'{path} holds a {type(content).__name__}, expected values by name: remove'
            ' it'
        )
    words = ('tflop_formula', 'device', 'energy_source')
    found = {name: content[name] for name in words if _is_text(content.get(name))}
    for name in _NUMBERS:
        value = content.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if math.isfinite(value) and value >= 0:
            found[name] = value
    return found


_NUMBERS = (
    *('steps', 'planned_steps', 'images', 'tflop', 'wall_seconds', 'devices'),
    *('device_hours', 'energy_kwh', 'kg_co2e_per_kwh', 'kg_co2e'),
)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 5000


def cost_line(cost: dict[str, Any]) -> str:
    """Return what `read_cost` returned in one line; '' if nothing is known."""
    parts = []
    if 'device_hours' in cost:
        parts.append(f'{cost["device_hours"]:.3g} device hours')
    if 'images' in cost:
        parts.append(f'{cost["images"]:,} images')
    for name, unit in (('tflop', 'TFLOP'), ('energy_kwh', 'kWh'), ('kg_co2e', 'kg')):
        if cost.get(name) is not None:
            parts.append(f'{cost[name]:,.3g} {unit}')
    line = ', '.join(parts)
    return f'{line} CO2e' if cost.get('kg_co2e') is not None else line


def _device_name(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'CPU ({platform.processor() or platform.machine()})'
