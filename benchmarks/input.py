"""How fast images are read, compared with plain code in the same run.

python benchmarks/input.py --output benchmarks/results/input.json

All data are generated and in the page cache, so the disk does not count. Rates are
images per second of processor time of one process with one thread: what one core gives,
whatever else the machine does. The ways of reading take turns, and the fastest round
counts.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from rasterio.windows import Window
from report import Report, header
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from torchgeo_explora.datasets import (
    FMoWRGB,
    Prepared,
    PreparedStream,
    SceneWindows,
    SyntheticScenes,
    prepare,
)
from torchgeo_explora.datasets.fmow.rgb import context_region
from torchgeo_explora.datasets.pixels.sentinel2 import BANDS

PARTS = ('jpeg', 'geotiff', 'memory', 'start')
#: The target: feed a GPU 1,000 images/s with 16 cores.
CORES, WANTED = 16, 1000
SIZE = 224
#: Side of the scene.
SIDE = 1024


def rates(
    ways: dict[str, Callable[[int], Any]], images: int, rounds: int
) -> dict[str, float]:
    """Return images per second of processor time, in the fastest of some rounds.

    Args:
        ways: Each returns image number i, or a sample with it.
        images: Number of images.
        rounds: Number of times that all are read.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, read in ways.items():
            began = time.process_time()
            for index in range(images):
                found = read(index)
                # Contiguous, as a batch needs it.
                (found if isinstance(found, Tensor) else found['image']).contiguous()
            # The first round fills caches.
            if number:
                seconds[name].append(time.process_time() - began)
    return {name: images / min(spent) for name, spent in seconds.items()}


def write_photographs(root: Path, images: int) -> None:
    """Write JPEGs of 500 x 500 pixels, quality 90, in the layout of fMoW."""
    scenes = SyntheticScenes(size=500, length=images)
    for number in range(images):
        folder = root / f'train/zoo/zoo_{number}'
        folder.mkdir(parents=True)
        pixels = scenes[number]['image'].byte().permute(1, 2, 0).numpy()
        path = folder / f'zoo_{number}_0_rgb.jpg'
        Image.fromarray(pixels).save(path, quality=90)
        box = {'category': 'zoo', 'box': [120, 130, 230, 220]}
        text = {'timestamp': '2016-01-01T00:00:00Z', 'bounding_boxes': [box]}
        path.with_suffix('.json').write_text(json.dumps(text))


def jpeg(record: dict[str, Any], root: Path, images: int, rounds: int) -> None:
    """Decode and crop: TorchGeo's way, ours on the same files, and prepared."""
    write_photographs(root / 'raw', images)
    ways: dict[str, Callable[[int], Any]] = {}
    for crop in ('box', 'image'):
        raw = FMoWRGB(root / 'raw', crop=crop, size=SIZE)
        prepare(raw, root / f'out/{crop}', samples_per_shard=64, progress=False)
        region = (0, 0, 500, 500)
        if crop == 'box':
            region = context_region((120, 130, 230, 220), 500, 500)

        def plain(
            index: int, paths: Sequence[str] = raw.paths, region: Any = region
        ) -> Tensor:
            with Image.open(paths[index]) as image:
                pixels = np.array(image.convert('RGB'))
            tensor = torch.from_numpy(pixels).permute(2, 0, 1).float()
            left, top, right, bottom = (int(side) for side in region)
            sides = top, left, bottom - top, right - left
            return F.resized_crop(tensor, *sides, [SIZE, SIZE], antialias=True)

        ways |= {
            f'{crop}: plain': plain,
            f'{crop}: raw': raw.__getitem__,
            f'{crop}: prepared': Prepared(root / f'out/{crop}').__getitem__,
        }
    stream = iter(PreparedStream(str(root / 'out/image'), buffer=images))
    ways['image: prepared, streamed'] = lambda index: next(stream)
    found = record['images_per_second_per_core'] = rates(ways, images, rounds)
    record['prepared_over'] = {
        way: found[f'{way.partition(":")[0]}: prepared'] / found[way]
        for way in found
        if 'prepared' not in way
    }
    files = {crop: (root / f'out/{crop}').glob('*.tar') for crop in ('box', 'image')}
    record['bytes_per_image'] = {
        'raw': sum(p.stat().st_size for p in (root / 'raw').rglob('*.jpg')) / images
    } | {
        f'prepared, {crop}': sum(path.stat().st_size for path in found) / images
        for crop, found in files.items()
    }
    record['rate_of_16_cores'] = {name: CORES * rate for name, rate in found.items()}
    least = min(found[f'{crop}: prepared'] for crop in ('box', 'image'))
    record['target'] = {
        'prepared at least 5 x raw JPEG': min(record['prepared_over'].values()) >= 5,
        f'{WANTED} images/s with {CORES} cores': CORES * least >= WANTED,
    }


def write_scene(path: Path, side: int) -> None:
    """Write a tiled GeoTIFF of 13 bands with the values of synthetic scenes."""
    scenes = SyntheticScenes(bands='s2', size=256, length=4)
    rows = [torch.cat([scenes[i]['image'] for i in row], 2) for row in ((0, 1), (2, 3))]
    scene = torch.cat(rows, 1).repeat(1, side // 512, side // 512)
    profile = {
        'driver': 'GTiff',
        'count': len(BANDS),
        'height': side,
        'width': side,
        'dtype': 'uint16',
        'crs': 'EPSG:32632',
        'transform': from_origin(500_000, 5_000_000, 10, 10),
        'tiled': True,
        'blockxsize': 256,
        'blockysize': 256,
        'compress': 'deflate',
        'predictor': 2,
    }
    with rasterio.open(path, 'w', **profile) as file:
        file.write(scene.round().numpy().astype('uint16'))
        file.descriptions = BANDS


def geotiff(record: dict[str, Any], root: Path, images: int, rounds: int) -> None:
    """Windows of 13 bands: plain rasterio, ours at the same places, and prepared."""
    folder = root / 'scenes'
    folder.mkdir()
    write_scene(folder / 'scene.tif', SIDE)
    windows = SceneWindows(folder, size=SIZE, length=images)
    prepare(windows, root / 'windows', samples_per_shard=64, progress=False)
    step = windows.cutting.step
    places = [
        Window(int(column) * step, int(row) * step, SIZE, SIZE)
        for _, row, column in windows.windows
    ]
    kept = rasterio.open(folder / 'scene.tif')

    def plain(index: int) -> Tensor:
        values = kept.read(window=places[index])
        return torch.from_numpy(values.astype(np.float32))

    def opened(index: int) -> Tensor:
        with rasterio.open(folder / 'scene.tif') as file:
            values = file.read(window=places[index])
        return torch.from_numpy(values.astype(np.float32))

    ways: dict[str, Callable[[int], Any]] = {
        'plain rasterio, file kept open': plain,
        'plain rasterio, file opened for each window': opened,
        'windows of scenes': windows.__getitem__,
        'prepared': Prepared(root / 'windows').__getitem__,
    }
    # GDAL would keep the decoded tiles of so small a scene.
    with rasterio.Env(GDAL_CACHEMAX=1):
        found = rates(ways, images, rounds)
    record['images_per_second_per_core'] = found
    ours = found['windows of scenes']
    over = record['windows_over'] = {
        way: ours / rate for way, rate in found.items() if 'plain' in way
    }
    record['target'] = {
        f'windows no slower than {way}': ratio >= 1 for way, ratio in over.items()
    }


class PlainRows:
    """A list of paths and labels, as ImageFolder and SatMAE's loaders keep it."""

    def __init__(self, csv: Path) -> None:
        """Read the file."""
        frame = pd.read_csv(csv)
        self.rows = list(zip(frame['image_path'], frame['category'], strict=True))

    def __getitem__(self, index: int) -> tuple[str, int]:
        """Look a row up, as a first step to its image."""
        return self.rows[index]


def write_rows(root: Path, rows: int) -> Path:
    """Write a CSV file of many rows that share one image."""
    folder = root / 'many/train/zoo/zoo_0'
    folder.mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(folder / 'zoo_0_0_rgb.jpg')
    csv = root / 'many/rows.csv'
    row = '61,train/zoo/zoo_0/zoo_0_0_rgb.jpg,2015-01-01T00:00:00Z\n'
    csv.write_text('category,image_path,timestamp\n' + row * rows)
    return csv


def private_mib() -> float:
    """Return the memory of this process that is not shared with others."""
    lines = Path('/proc/self/smaps_rollup').read_text().splitlines()
    return (
        next(int(x.split()[1]) for x in lines if x.startswith('Private_Dirty')) / 1024
    )


def touched(dataset: Any, indices: Sequence[int], answer: Any) -> None:
    """Read samples, and return the memory used after a tenth of them and after all."""
    before, found = private_mib(), []
    for number, index in enumerate(indices, 1):
        dataset[index]
        if number in (len(indices) // 10, len(indices)):
            found.append(private_mib() - before)
    answer.put(found)


def memory(record: dict[str, Any], root: Path, rows: int, reads: int) -> None:
    """Memory that a forked worker adds while it reads at random."""
    csv = root / 'many/rows.csv'
    many = FMoWRGB(root / 'many', crop='image', size=8, csv=csv)
    prepared = Prepared(root / 'out/image')
    windows = SceneWindows(root / 'scenes', size=SIZE, length=rows)
    generator = np.random.default_rng(0)
    context = multiprocessing.get_context('fork')
    record['mib_per_worker'] = {}
    # Pages of a file that are still to be written would count as private.
    os.sync()
    for name, dataset, size, number in (
        ('plain: a list of rows in Python', PlainRows(csv), rows, reads),
        ('raw JPEG', many, rows, reads),
        ('prepared JPEG', prepared, len(prepared), reads),
        ('windows of scenes', windows, rows, reads // 10),
    ):
        # What the first sample loads is shared by all.
        dataset[0]
        indices = generator.integers(0, size, number).tolist()
        answer = context.Queue()
        worker = context.Process(target=touched, args=(dataset, indices, answer))
        worker.start()
        first, last = answer.get()
        worker.join()
        record['mib_per_worker'][name] = {number // 10: first, number: last}


def start(record: dict[str, Any], root: Path, rows: int) -> None:
    """Seconds until the first sample."""
    csv = write_rows(root, rows)

    def first() -> None:
        FMoWRGB(root / 'many', crop='image', size=8, csv=csv)[rows - 1]

    record['rows'] = rows
    record['seconds_to_first_sample'] = {}
    for name, build in (
        ('the first start, which makes the index', first),
        ('every other start', first),
        ('plain: pandas, and a list of rows', lambda: PlainRows(csv)[rows - 1]),
    ):
        began = time.perf_counter()
        build()
        record['seconds_to_first_sample'][name] = time.perf_counter() - began
    again = record['seconds_to_first_sample']['every other start']
    record['target'] = {'seconds': again < 10}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--commit', help='if git cannot tell')
    parser.add_argument('--images', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--rows', type=int, default=1_000_000)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Report(given.output, PARTS, header(torch.device('cpu'), given.commit))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        counts = given.images, given.rounds
        results.run('jpeg', lambda record: jpeg(record, root, *counts))
        results.run('geotiff', lambda record: geotiff(record, root, *counts))
        results.run('start', lambda record: start(record, root, given.rows))
        results.run(
            'memory',
            lambda record: memory(record, root, given.rows, min(4000, given.rows)),
        )
    print(json.dumps(results.content, indent=1))
    return int(any(results.content[part]['status'] == 'failed' for part in PARTS))


if __name__ == '__main__':
    raise SystemExit(main())
