r"""Map a scene of 20,000 x 20,000 pixels: memory, alignment, and a kill on the way.

    OMP_NUM_THREADS=1 python benchmarks/scene_map.py \
        --output benchmarks/results/scene_map.json

A GeoTIFF is generated, and `torchgeo predict` maps it with a tiny random segmenter:
what is measured is everything around the model. A second run is killed (SIGKILL,
workers too) when half of the blocks are there, and started again: the file must be the
same to the byte. Memory is the largest sum over all processes of the run: of their
resident sets, in which shared pages count several times, and of their proportional
sets, in which they count once.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import yaml
from rasterio.windows import Window
from report import Report, header

from torchgeo_explora.datamodules import RasterSceneDataModule

#: Rows that are generated or compared at once.
ROWS = 500
MEBI = 2**20
#: Parts of the second run.
SECOND = ('killed', 'resumed')


def generate(path: Path, side: int) -> None:
    """Write 3 bands of 8 bits: fields of random colour, and a slanting hole of no data.

    The hole's edge moves by a pixel every few rows: a map that is shifted by one pixel
    would show it.
    """
    generator = np.random.default_rng(0)
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        count=3,
        height=side,
        width=side,
        dtype='uint8',
        crs='EPSG:32632',
        transform=rasterio.transform.from_origin(500_000, 5_000_000, 10, 10),
        nodata=0,
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress='deflate',
        zlevel=1,
    ) as file:
        for top in range(0, side, ROWS):
            rows = min(ROWS, side - top)
            fields = generator.integers(1, 255, (3, -(-rows // 50), -(-side // 50)))
            values = fields.repeat(50, 1).repeat(50, 2)[:, :rows, :side]
            values[:, hole(top, rows, side)] = 0
            file.write(values.astype('uint8'), window=Window(0, top, side, rows))


def hole(top: int, rows: int, side: int) -> np.ndarray:
    """Return where rows of the scene have no data, (rows, side) bool."""
    row, column = np.ogrid[top : top + rows, :side]
    return (column > side // 2 + row // 3) & (row > side // 7)


def configure(folder: Path, scene: Path, options: argparse.Namespace) -> Path:
    """Write the configuration of a run whose results are in *folder*."""
    content = {
        'seed_everything': 0,
        'trainer': {
            'accelerator': 'cpu',
            'logger': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'default_root_dir': str(folder),
        },
        'model': {
            'class_path': 'torchgeo_explora.tasks.ExploraSegmentationTask',
            'init_args': {
                'num_classes': 4,
                'decoder': 'linear',
                'model': 'vit_tiny_patch16_224',
                'weights': None,
                'model_args': {'embed_dim': 24, 'depth': 4, 'num_heads': 2},
            },
        },
        'data': {
            'class_path': 'torchgeo_explora.datamodules.RasterSceneDataModule',
            'init_args': {'path': str(scene), 'num_workers': options.workers},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'config_in.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


def predict(config: Path, kill_at: int | None = None) -> dict[str, Any]:
    """Run `torchgeo predict`, and kill it when *kill_at* blocks are there.

    Returns:
        Peaks over all of its processes.
    """
    command = [sys.executable, '-c', 'from torchgeo.main import main; main()']
    peaks = np.zeros(2)
    parts = config.parent / '.scene.tif.parts'
    run = subprocess.Popen(
        [*command, 'predict', '--config', str(config)], start_new_session=True
    )
    while run.poll() is None:
        peaks = np.maximum(peaks, memory(run.pid))
        if kill_at is not None and len([*parts.glob('*.npy')]) >= kill_at:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            break
        time.sleep(0.2)
    if kill_at is None and run.returncode:
        raise RuntimeError(f'torchgeo predict ended with {run.returncode}')
    resident, proportional = peaks.round().astype(int).tolist()
    return {'peak_resident_mib': resident, 'peak_proportional_mib': proportional}


def memory(session: int) -> np.ndarray:
    """Return the MiB that the processes of a session hold: resident, proportional."""
    found = np.zeros(2)
    for entry in Path('/proc').iterdir():
        try:
            # pid (name) state parent group session ...; the name may hold blanks.
            fields = (entry / 'stat').read_text().rpartition(')')[2].split()
            if int(fields[3]) != session:
                continue
            sets = dict(
                line.split()[:2]
                for line in (entry / 'smaps_rollup').read_text().splitlines()[1:]
            )
            found += [int(sets['Rss:']), int(sets['Pss:'])]
        except (OSError, ValueError, IndexError, KeyError):
            continue  # no process, or one that has just ended
    return found / 1024


def check(scene: Path, result: Path) -> dict[str, Any]:
    """Return whether the map lies on the scene, to the pixel."""
    with rasterio.open(scene) as before, rasterio.open(result) as after:
        same = {
            'crs': before.crs == after.crs,
            'transform': before.transform == after.transform,
            'size': before.shape == after.shape,
        }
        off, classes = 0, np.zeros(256, np.int64)
        for top in range(0, before.height, ROWS):
            rows = min(ROWS, before.height - top)
            values = after.read(1, window=Window(0, top, before.width, rows))
            off += int(((values == 255) != hole(top, rows, before.width)).sum())
            classes += np.bincount(values.reshape(-1), minlength=256)
    return same | {
        'pixels_off_the_hole': off,
        'pixels_of_class': {int(i): int(classes[i]) for i in classes.nonzero()[0]},
    }


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Map the scene twice, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--output', type=Path, required=True, help='JSON file')
    parser.add_argument('--side', type=int, default=20_000, help='pixels')
    parser.add_argument('--workers', type=int, default=1, help='that read blocks')
    parser.add_argument('--once', action='store_true', help='leave out the second run')
    options = parser.parse_args(arguments)
    device = torch.device('cpu')
    parts = ('scene', 'whole') if options.once else ('scene', 'whole', *SECOND)
    report = Report(options.output, parts, header(device, None))
    folder = Path(tempfile.mkdtemp(prefix='scene_map'))
    scene = folder / 'scene.tif'

    def described(record: dict[str, Any]) -> None:
        generate(scene, options.side)
        record |= {'side': options.side, 'mib': round(scene.stat().st_size / MEBI)}

    def whole(record: dict[str, Any]) -> None:
        record |= predict(configure(folder / 'whole', scene, options))
        record |= check(scene, folder / 'whole' / 'scene.tif')
        record['blocks'] = RasterSceneDataModule(str(scene)).open().blocks

    def killed(record: dict[str, Any]) -> None:
        half = report.content['whole']['blocks'] // 2
        record |= predict(configure(folder / 'again', scene, options), half)
        found = [*(folder / 'again' / '.scene.tif.parts').glob('*.npy')]
        record |= {'blocks': len(found)}

    def resumed(record: dict[str, Any]) -> None:
        record |= predict(folder / 'again' / 'config_in.yaml')
        results = [folder / name / 'scene.tif' for name in ('whole', 'again')]
        record['same_bytes'] = digest(results[0]) == digest(results[1])

    for part, measure in zip(parts, (described, whole, killed, resumed), strict=False):
        report.run(part, measure)
    shutil.rmtree(folder)
    return int(any(report.content[part]['status'] != 'done' for part in parts))


if __name__ == '__main__':
    sys.exit(main())
