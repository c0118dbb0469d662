"""The file of results, with the machine, the versions and the progress."""

import json
import os
import platform
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from torchgeo_explora.writing import replacing

PACKAGES = (
    'torch',
    'torchvision',
    'timm',
    'peft',
    'lightning',
    'kornia',
    'torchgeo',
    'lightly',
)


class NotRunError(Exception):
    """Why a part or a measurement was left out."""


class Report:
    """A JSON file that is complete after every part.

    A part that was not reached, or that cannot run, says 'not run' with the reason; a
    part during which the run was cut off says 'running'.

    Args:
        path: The file to write.
        parts: Names of all parts, in order.
        header: Description of the run.
    """

    def __init__(
        self, path: Path, parts: tuple[str, ...], header: dict[str, Any]
    ) -> None:
        """Write a file in which no part has run."""
        self.path = path
        waiting = {'status': 'not run', 'reason': 'the run ended before this part'}
        self.content = header | {part: dict(waiting) for part in parts}
        self.save()

    def save(self) -> None:
        """Write what is known so far."""
        with replacing(self.path) as part:
            part.write_text(json.dumps(_plain(self.content), indent=1) + '\n')

    def run(self, part: str, measure: Callable[[dict[str, Any]], None]) -> None:
        """Run one part; a failure is recorded and does not stop the others.

        Args:
            part: Its name.
            measure: Puts results into the dictionary that it is given.
        """
        began = datetime.now(UTC)
        record = self.content[part] = {'status': 'running'}
        self.save()
        try:
            measure(record)
            record['status'] = 'done'
        except NotRunError as reason:
            record |= {'status': 'not run', 'reason': str(reason)}
        except Exception as error:  # noqa: BLE001 - it must not cost the other parts
            trace = traceback.format_exc()
            record |= {'status': 'failed', 'reason': repr(error), 'trace': trace}
            print(trace, file=sys.stderr, flush=True)
        record['seconds'] = round((datetime.now(UTC) - began).total_seconds(), 2)
        self.save()
        why = record.get('reason', '')
        print(f'{part}: {record["status"]} {record["seconds"]} s {why}', flush=True)


def header(device: torch.device, commit: str | None) -> dict[str, Any]:
    """Return command, date, commit, machine and versions.

    Args:
        device: Where the measurements run.
        commit: The commit, if git cannot tell.
    """
    return {
        'command': shlex.join(map(_shown, [sys.executable, *sys.argv])),
        'date': datetime.now(UTC).isoformat(timespec='seconds'),
        'commit': commit or _commit(),
        'machine': machine(device),
        'versions': {'python': platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
    }


def _shown(argument: str) -> str:
    """Return an argument without the folders of one machine."""
    path = Path(argument)
    return path.name if path.is_absolute() else argument


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the measurements run on."""
    found: dict[str, Any] = {
        'device': str(device),
        'cpu': _cpu(),
        'cores': len(os.sched_getaffinity(0)),
        'threads': torch.get_num_threads(),
        'memory_gib': round(
            os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1
        ),
        'system': platform.platform(),
    }
    if device.type == 'cuda':
        card = torch.cuda.get_device_properties(device)
        found |= {
            'gpu': card.name,
            'gpu_memory_gib': round(card.total_memory / 2**30, 1),
            'multiprocessors': card.multi_processor_count,
            'capability': f'{card.major}.{card.minor}',
            'driver': _output('nvidia-smi', '--query-gpu=driver_version')
            or 'nvidia-smi did not tell',
            'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version(),
        }
    return found


def _cpu() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if 'model name' in line]
    return names[0] if names else platform.processor()


def _output(program: str, *query: str) -> str:
    command = [program, *query, '--format=csv,noheader']
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout.strip()


def _commit() -> str:
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ['git', *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = ' with changes' if git('status', '--porcelain', '..') else ''
        return git('rev-parse', 'HEAD') + changed
    except (OSError, subprocess.CalledProcessError):
        return 'unknown: no git here, and no --commit'


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return 'not installed'


def _plain(value: Any) -> Any:
    """Return the value with infinities as text, since JSON has none."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
