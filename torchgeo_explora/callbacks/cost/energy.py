"""The electricity that a run uses: measured by the device, or estimated."""

from importlib import import_module
from typing import Any, Self

import torch
from lightning.pytorch.utilities import rank_zero_info

JOULES_PER_KWH = 3.6e6


class DeviceMeter:
    """Energy of CUDA devices since this object was made, from NVIDIA's NVML.

    NVML counts the whole board, whoever uses it, but not the rest of the machine.

    Args:
        nvml: The module `pynvml`, initialised.
        handles: NVML's handles of the devices.
    """

    source = 'measured by the GPU (NVML): the boards, without the rest of the machine'
    #: kg CO2e per kWh, if the meter knows it.
    intensity: float | None = None

    def __init__(self, nvml: Any, handles: list[Any]) -> None:
        """Read the counters."""
        self._nvml = nvml
        self._handles = handles
        self._start = self._joules()

    @classmethod
    def of(cls, devices: list[torch.device]) -> Self | None:
        """Return a meter of devices, or None if they report no energy.

        Args:
            devices: All devices that the run uses on this machine.
        """
        if not devices or any(device.type != 'cuda' for device in devices):
            return None
        try:
            pynvml: Any = import_module('pynvml')
        except ImportError:
            rank_zero_info(
                'the energy of the GPUs is not measured: pip install nvidia-ml-py'
            )
            return None
        try:
            pynvml.nvmlInit()
            # NVML ignores CUDA_VISIBLE_DEVICES: its numbers may differ.
            handles = [
                pynvml.nvmlDeviceGetHandleByUUID(
                    f'GPU-{torch.cuda.get_device_properties(device).uuid}'
                )
                for device in devices
            ]
            return cls(pynvml, handles)
        except (pynvml.NVMLError, AttributeError):
            return None

    def _joules(self) -> float:
        read = self._nvml.nvmlDeviceGetTotalEnergyConsumption  # in mJ
        return sum(read(handle) for handle in self._handles) / 1e3

    def stop(self) -> None:
        """Do nothing: reading a counter keeps nothing running."""

    def kwh(self) -> float:
        """Return the energy so far."""
        return (self._joules() - self._start) / JOULES_PER_KWH


class MachineMeter:
    """Energy of the machine by codecarbon, which knows a country's grid.

    It works without a network. codecarbon estimates what it cannot measure (often the
    CPU and the memory).

    Args:
        country: Three-letter ISO code, such as DEU.

    Raises:
        ImportError: If codecarbon is not installed.
    """

    def __init__(self, country: str) -> None:
        """Start codecarbon."""
        try:
            codecarbon: Any = import_module('codecarbon')
            base: Any = import_module('codecarbon.output').BaseOutput
        except ImportError as error:
            raise ImportError(
                f'*country* {country} needs codecarbon, which is not installed: run'
                ' pip install codecarbon, or leave out *country*'
                ' and give *power* and *intensity*'
            ) from error

        class Keep(base):
            """Takes what codecarbon would write to a file."""

            total: Any = None

            def out(self, total: Any, delta: Any) -> None:
                self.total = total

        self.source = (
            f'codecarbon {codecarbon.__version__}: the whole machine, in {country}'
        )
        self.intensity: float | None = None
        self._kept = Keep()
        self._tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code=country,
            save_to_file=False,
            log_level='error',
            allow_multiple_runs=True,
            output_handlers=[self._kept],
        )
        self._tracker.start()

    def kwh(self) -> float:
        """Return the energy so far."""
        self._tracker.flush()
        total = self._kept.total
        if total is None:
            return 0.0
        energy = float(total.energy_consumed)
        if energy > 0:
            self.intensity = float(total.emissions) / energy
        return energy

    def stop(self) -> None:
        """Stop codecarbon's thread."""
        self._tracker.stop()
