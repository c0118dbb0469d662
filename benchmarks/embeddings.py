"""What embeddings, maps and search cost, compared with the bare model.

    OMP_NUM_THREADS=1 python benchmarks/embeddings.py --folder build/embeddings \
        --output benchmarks/results/embeddings.json

- `embed` and `map`: images per second of `explora embed` and of `explora map` on a
  generated scene, over those of timm's model on random batches of the same sizes and
  type. The two take turns in one process, batch by batch, so that other work on the
  machine slows both alike. The time of the whole command counts, from opening the scene
  to the finished file.
- `scene`: memory of `explora map` on a scene of 10,000 x 10,000 pixels, with all
  processes that it starts; whether the map is cloud-optimised by the rules of
  rio-cogeo; and whether each of its cells lies on its own pixels.
- `search`: time to find the 20 nearest of a million vectors in a file, in blocks as in
  `explora search`, and with an exact index of FAISS.

The command can be repeated after an interruption: with the same folder, parts that were
done at the same commit are kept, and the map continues where it stopped.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import timm
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from report import NotRunError, Report, header
from torch import Tensor
from torch.nn.functional import normalize

from torchgeo_explora.export import embed, map_scenes
from torchgeo_explora.export.imagery.embedding_file import EmbeddingFile
from torchgeo_explora.functional import nearest
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import ExploraKNNTask
from torchgeo_explora.writing import replacing

PARTS = ('embed', 'map', 'scene', 'search')
MODEL, PATCH, SIZE = 'vit_tiny_patch16_224', 16, 224
QUIET = {'accelerator': 'cpu', 'enable_progress_bar': False, 'overwrite': True}
#: Rows and columns of a scene that have no data; not a whole number of patches.
HOLE = 100, 250
#: Rows of a block of vectors.
ROWS = 8192


def write_scene(path: Path, side: int) -> None:
    """Write a scene of three bands of bytes, unless it exists."""
    if path.exists():
        return
    random = np.random.default_rng(0)
    profile = {
        'driver': 'GTiff',
        'count': 3,
        'height': side,
        'width': side,
        'dtype': 'uint8',
        'nodata': 0,
        'crs': 'EPSG:32632',
        'tiled': True,
        'transform': rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000),
    }
    columns = np.arange(side)
    with replacing(path) as part, rasterio.open(part, 'w', **profile) as file:
        for top in range(0, side, 256):
            rows = np.arange(top, min(top + 256, side))[:, None]
            waves = np.sin(rows / 37) * np.cos(columns / 61) + np.sin(columns / 500)
            noise = random.integers(-20, 20, (3, len(rows), side))
            values = (128 + 40 * waves + noise).astype(np.uint8)
            values[:, (rows < HOLE[0]) & (columns < HOLE[1])] = 0
            file.write(values, window=Window(0, top, side, len(rows)))


class Beside:
    """A bare model that sees one random image for every image that a task sees.

    Args:
        model: The bare model, from timm.

    Attributes:
        images: How many images each of them has seen.
        seconds: Time of the bare model, as counted by `now`.
        idle: Time to draw the random images, which counts for neither.
    """

    def __init__(self, model: Any) -> None:
        """Start without images."""
        self.model = model.eval()
        self.images = 0
        self.seconds, self.idle = np.zeros(2), np.zeros(2)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Run after every step of a prediction."""
        predict, through = ExploraKNNTask.predict_step, ViT.encode

        def step(task: ExploraKNNTask, *arguments: Any) -> Any:
            sizes: list[int] = []

            def encode(backbone: ViT, content: Tensor, *others: Any) -> Any:
                sizes.append(len(content))
                return through(backbone, content, *others)

            with mock.patch.object(ViT, 'encode', encode):
                found = predict(task, *arguments)
            for size in sizes:
                times = [now()]
                images = torch.rand(size, 3, SIZE, SIZE)
                times.append(now())
                self.model.forward_features(images)
                times.append(now())
                self.idle += times[1] - times[0]
                self.seconds += times[2] - times[1]
            self.images += sum(sizes)
            return found

        with mock.patch.object(ExploraKNNTask, 'predict_step', step):
            yield


def now() -> NDArray[np.float64]:
    """Return wall-clock seconds and processor seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def throughput(
    record: dict[str, Any],
    command: Callable[..., Any],
    name: str,
    options: argparse.Namespace,
) -> None:
    """Run a command on a scene several times, each time alongside the bare model.

    Args:
        record: Gets the results.
        command: Embeds or maps.
        name: Name of the file that it writes.
        options: Options of the command line.
    """
    scene = options.folder / f'{options.side}.tif'
    write_scene(scene, options.side)
    target = options.folder / name
    found = []
    # The first round loads libraries.
    for number in range(options.rounds + 1):
        beside = Beside(timm.create_model(options.model))
        began = now()
        with beside.watching():
            command(scene, target, options.model, options.weights, **QUIET)
        if number:
            own = now() - began - beside.seconds - beside.idle
            found.append((beside.seconds / own, beside.images / own))
    record['images'] = beside.images
    for clock, kind in enumerate(('clock', 'processor')):
        ratios = [round(float(ratio[clock]), 3) for ratio, _ in found]
        record[kind] = {
            'over_bare_model': round(statistics.median(ratios), 3),
            'rounds': ratios,
            'images_per_second': round(
                statistics.median(float(rate[clock]) for _, rate in found), 2
            ),
        }


def measure_embed(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Compare `embed` with the bare model."""
    throughput(record, embed, 'embedded.parquet', options)


def measure_map(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Compare the dense map with the bare model."""
    throughput(record, map_scenes, 'mapped.tif', options)
    # Windows overlap, and those between two blocks are computed with both.
    side_by_side = (options.side / SIZE) ** 2
    record['windows_over_area'] = round(record['images'] / side_by_side, 3)


def measure_scene(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Map a large scene with the command, and check the map."""
    if importlib.util.find_spec('rio_cogeo') is None:
        raise NotRunError('rio-cogeo is not installed')
    scene = options.folder / f'{options.large}.tif'
    write_scene(scene, options.large)
    target = options.folder / 'large.tif'
    target.unlink(missing_ok=True)
    weights = str(options.weights or 'false')
    command = [sys.executable, '-W', 'ignore', '-m', 'torchgeo_explora.cli', 'map']
    command += [str(scene), str(target), '--model', MODEL, '--weights', weights]
    began = time.perf_counter()
    with (options.folder / 'map.log').open('w') as log:
        process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        peak = _largest_tree(process)
    if process.returncode:
        raise RuntimeError((options.folder / 'map.log').read_text()[-2000:])
    record['minutes'] = round((time.perf_counter() - began) / 60, 1)
    # The kernel's figure is exact, but only for the largest of all processes.
    known = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    record['peak_gib'] = round(max(peak, known) / 2**30, 2)
    record['mib'] = round(target.stat().st_size / 2**20)
    _check(record, scene, target, options.weights)


def _largest_tree(process: psutil.Popen) -> int:
    """Return the largest resident memory of a process with all that it started."""
    largest = 0
    while process.poll() is None:
        found = 0
        for each in (process, *_children(process)):
            try:
                found += each.memory_info().rss
            except psutil.Error:
                continue
        largest = max(largest, found)
        time.sleep(0.05)
    return largest


def _children(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


@torch.no_grad()
def _check(
    record: dict[str, Any], scene: Path, target: Path, weights: Path | None
) -> None:
    """Record whether a map is cloud-optimised and lies where its scene does.

    Cells in the middle of a window are in no other window: they are the tokens of the
    bare model for the pixels there.
    """
    from rio_cogeo.cogeo import cog_validate

    valid, errors, complaints = cog_validate(target, strict=True)
    record['cloud_optimised'] = valid
    record['complaints'] = [*errors, *complaints]
    torch.manual_seed(0)
    model = ViT(MODEL, weights).eval()
    with rasterio.open(scene) as pixels, rasterio.open(target) as cells:
        grid = pixels.transform @ rasterio.Affine.scale(PATCH)
        record['on_the_grid'] = (
            cells.transform.almost_equals(grid, 1e-12)
            and cells.crs == pixels.crs
            and cells.shape == tuple(-(-side // PATCH) for side in pixels.shape)
        )
        empty = np.isnan(cells.read(1))
        rows, columns = (side // PATCH for side in HOLE)
        expected = np.zeros_like(empty)
        expected[:rows, :columns] = True
        record['no_data_where_the_scene_has_none'] = bool((empty == expected).all())
        if weights is None:
            record['largest_difference'] = 'not measured: random weights'
            return
        # Windows of a map start at multiples of 192 pixels.
        starts = range(192, min(pixels.shape) - SIZE, 192)
        wide, inner = SIZE // PATCH, slice(2, -2)
        largest = 0.0
        for start in [*starts][:: max(1, len(starts) // 10)]:
            image = torch.from_numpy(
                pixels.read(window=Window(start, start, SIZE, SIZE))
            )
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
            patch = model(((image / 255 - mean) / std)[None]).patch[0]
            wanted = patch.T.view(-1, wide, wide)[:, inner, inner].numpy()
            place = Window(start // PATCH, start // PATCH, wide, wide)
            found = cells.read(window=place)[:, inner, inner]
            largest = max(largest, float(np.abs(found - wanted).max()))
        record['largest_difference'] = largest


def measure_search(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Find the nearest vectors in a file in two ways."""
    path = options.folder / f'{options.vectors}.parquet'
    _write_vectors(path, options.vectors)
    file = EmbeddingFile(path)
    torch.manual_seed(1)
    query = normalize(torch.randn(1, 192), dim=1)
    ways: dict[str, Callable[[], Tensor]] = {
        'blocks': lambda: nearest(file.vectors(), query, 20)[1]
    }
    if importlib.util.find_spec('faiss'):
        ways['faiss'] = lambda: _by_faiss(file, query)
        record['faiss_version'] = version('faiss-cpu')
    else:
        record['faiss'] = 'not run: it is not installed'
    seconds: dict[str, list[NDArray[np.float64]]] = {way: [] for way in ways}
    for number in range(options.rounds + 1):
        found = []
        for way, search in ways.items():
            began = now()
            found.append(search())
            if number:
                seconds[way].append(now() - began)
        if any((each != found[0]).any() for each in found):
            raise RuntimeError('the ways find different vectors')
    for way, spent in seconds.items():
        clock, processor = np.median(spent, 0)
        record[way] = {'clock_s': round(clock, 3), 'processor_s': round(processor, 3)}


def _by_faiss(file: EmbeddingFile, query: Tensor) -> Tensor:
    """Return the numbers of the 20 nearest, with an exact index built for it."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(query.shape[1])
    for block in file.vectors():
        index.add(block.numpy())
    return torch.from_numpy(index.search(query.numpy(), 20)[1])


def _write_vectors(path: Path, count: int) -> None:
    """Write a file of random embeddings, unless it exists."""
    if path.exists():
        return
    generator = torch.Generator().manual_seed(0)
    kinds = [('index', pa.int64()), ('embedding', pa.list_(pa.float32(), 192))]
    schema = pa.schema(kinds, {'explora': json.dumps({'model': 'random'})})
    with replacing(path) as part, pq.ParquetWriter(part, schema) as file:
        for start in range(0, count, ROWS):
            numbers = pa.array(range(start, min(start + ROWS, count)), pa.int64())
            values = torch.randn(len(numbers), 192, generator=generator).numpy()
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 192)
            file.write_table(pa.table([numbers, vectors], schema=schema))


MEASURES = {
    'embed': measure_embed,
    'map': measure_map,
    'scene': measure_scene,
    'search': measure_search,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure every part that is not done yet, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--output', type=Path, required=True, help='JSON file')
    parser.add_argument(
        '--folder', type=Path, required=True, help='for scenes and maps'
    )
    parser.add_argument('--model', default=MODEL, help='of `embed` and `map`')
    parser.add_argument('--weights', type=Path, help='of the model; random by default')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--side', type=int, default=3584, help='pixels of a scene')
    parser.add_argument('--large', type=int, default=10_000, help='of the large one')
    parser.add_argument('--vectors', type=int, default=1_000_000)
    parser.add_argument('--parts', nargs='+', default=[*PARTS], choices=PARTS)
    options = parser.parse_args(arguments)
    warnings.filterwarnings('ignore')
    options.folder.mkdir(parents=True, exist_ok=True)
    old = json.loads(options.output.read_text()) if options.output.exists() else {}
    names = ('model', 'rounds', 'side', 'large')
    settings = {name: getattr(options, name) for name in names}
    report = Report(
        options.output,
        PARTS,
        header(torch.device('cpu'), None) | {'settings': settings},
    )
    # The results file itself may count as a change.
    commits = [str(each.get('commit')).split()[0] for each in (old, report.content)]
    for part in PARTS:
        done = old.get(part, {}).get('status') == 'done' and len(set(commits)) == 1
        if done:
            report.content[part] = old[part]
        elif part in options.parts:
            report.run(part, partial(MEASURES[part], options=options))
    report.save()
    return int(any(report.content[part]['status'] != 'done' for part in options.parts))


if __name__ == '__main__':
    sys.exit(main())
