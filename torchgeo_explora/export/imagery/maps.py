"""Maps of scenes: patch embeddings, or what a trained task predicts."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rasterio.errors import RasterioError

from torchgeo_explora import tasks
from torchgeo_explora.adapt import base_fingerprint, delta_state_dict, fingerprint
from torchgeo_explora.callbacks import RasterWriter
from torchgeo_explora.datamodules import RasterSceneDataModule
from torchgeo_explora.datasets.pixels.image_file import reason_of
from torchgeo_explora.datasets.pixels.raster_file import open_raster
from torchgeo_explora.datasets.scenes.listing import list_scenes
from torchgeo_explora.datasets.scenes.scene import Scene
from torchgeo_explora.datasets.tables.dataset import OnError, check_choice
from torchgeo_explora.datasets.tables.index_file import file_stamp
from torchgeo_explora.export.imagery.embeddings import new_trainer, own_copy
from torchgeo_explora.models.formats.files import read_file
from torchgeo_explora.paths import expanded, local_path
from torchgeo_explora.tasks.downstream.base import DownstreamTask
from torchgeo_explora.tasks.run.backbone import Model, Weights

# Share of a window that overlaps the next one.
_OVERLAP = 1 / 7
_MAPPED = (
    'ExploraSegmentationTask',
    'ExploraClassificationTask',
    'ExploraLinearProbeTask',
    'ExploraKNNTask',
)


def map_scenes(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    model: Model | None = None,
    weights: Weights = True,
    delta: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    components: int | None = None,
    channels: Sequence[int] | None = None,
    bands: Sequence[str] | None = None,
    assets: Sequence[str] = (),
    value_range: tuple[Any, Any] | None = None,
    nodata: float | None = None,
    block: int | None = None,
    on_error: OnError = 'raise',
    num_workers: int = 0,
    overwrite: bool = False,
    **trainer: Any,
) -> list[Path]:
    """Write a map of each scene as a cloud-optimised GeoTIFF, on the scene's grid.

    A map holds the patch embeddings of a model, with one cell for each patch, or the
    predictions of a trained task. Windows overlap and are blended. If the process is
    interrupted, the same call continues where it stopped. The file is described in
    `RasterWriter`. Each map is in the coordinate system of its scene.

    Args:
        source: A scene, a folder of scenes, a pattern, a VRT or a `.json` file of STAC
            items.
        output: The file to write, `.tif`, for one scene; otherwise a folder, where each
            map has the name of its scene.
        model: As for `ExploraKNNTask`, for embeddings.
        weights: As for `ExploraKNNTask`; for a checkpoint, those of its base.
        delta: A delta for these weights.
        image_size: Side of the windows in pixels. By default, for a model given by
            name, that of the delta's run, or 224 without one.
        checkpoint: Checkpoint of a trained task, to map its classes instead.
        components: Number of principal components of each scene's embeddings to write
            instead of all values.
        channels: Numbers of the bands, from 1, in the model's order.
        bands: Names of the bands, in the model's order; if the files do not name them,
            names for those that are read.
        assets: Keys of the assets of STAC items, in the order of the bands.
        value_range: (low, high) of the values; by default that of the stored type.
        nodata: Value of pixels without data, for scenes that do not declare it.
        block: Side in pixels of the blocks that are read and kept in memory; 2048 for
            embeddings, 1024 for classes, which take more memory. Windows at the edges
            of a block are computed twice, so small blocks take longer.
        on_error: 'raise' stops at a scene that cannot be read, 'skip' leaves it out.
        num_workers: Processes that read blocks.
        overwrite: Whether to replace existing maps.
        **trainer: Arguments of Lightning's `Trainer`, such as *devices* or *precision*.

    Returns:
        The files.

    Raises:
        FileExistsError: If there is a map that this call did not write.
        OSError: If a file cannot be read or written.
        ValueError: If an argument is wrong, or the delta belongs to another base.
    """
    check_choice('on_error', on_error, ('raise', 'skip'))
    place = local_path('output', output)
    scenes, problems = list_scenes(expanded(source), assets)
    if problems and on_error == 'raise':
        name, problem = problems[0]
        raise ValueError(f'{name}: {problem}; leave it out with *on_error* skip')
    left_out = [*problems]
    targets = _targets(scenes, place)
    task = _task(model, weights, delta, image_size, checkpoint, value_range)
    patch = task.backbone.patch_size
    settings: dict[str, Any] = {
        'size': task.image_size,
        'overlap': round(_OVERLAP * task.image_size / patch) * patch,
        'block': block or (1024 if task.labels_cells else 2048),
        'channels': None if channels is None else list(channels),
        'bands': None if bands is None else list(bands),
        'value_range': value_range,
    }
    if nodata is not None:
        settings['nodata'] = nodata
    written = []
    for scene, target in zip(scenes, targets, strict=True):
        run = _digest(task, scene, {**settings, 'components': components})
        if not overwrite and target.exists():
            if _run_of(target) != run:
                raise FileExistsError(
                    f'{target} exists: choose another *output*, or pass *overwrite*'
                )
            written.append(target)
            continue
        writer = RasterWriter(target, components, {'EXPLORA_RUN': run})
        try:
            data = RasterSceneDataModule(
                scene.path, **settings, num_workers=num_workers
            )
            new_trainer(target, [writer], trainer).predict(task, data)
        except (RasterioError, FileNotFoundError) as error:
            problem = f'cannot be read ({reason_of(error)})'
            if on_error == 'raise':
                raise ValueError(
                    f'{scene.name} {problem}: leave it out with *on_error* skip'
                ) from error
            left_out.append((scene.name, problem))
            continue
        written.append(target)
    if not written:
        raise ValueError(f'none of the scenes of {os.fspath(source)} can be read')
    if left_out:
        name, problem = left_out[0]
        warnings.warn(
            f'{len(left_out)} of {len(problems) + len(scenes)} scenes are left out,'
            f' such as {name}: {problem}',
            stacklevel=2,
        )
    return written


def _targets(scenes: Sequence[Scene], output: Path) -> list[Path]:
    """Return the file of each scene's map.

    Raises:
        ValueError: If a single file is to hold several maps.
    """
    if output.suffix.lower() in ('.tif', '.tiff'):
        if len(scenes) > 1:
            raise ValueError(
                f'*output* {output} is one file for {len(scenes)} scenes: give a folder'
            )
        return [output]
    found: list[Path] = []
    for scene in scenes:
        stem = Path(scene.name).stem
        names = [stem, *(f'{stem}_{number}' for number in range(2, len(scenes) + 2))]
        paths = (output / f'{name}.tif' for name in names)
        found.append(next(path for path in paths if path not in found))
    return found


def _task(
    model: Model | None,
    weights: Weights,
    delta: str | os.PathLike[str] | None,
    image_size: int | None,
    checkpoint: str | os.PathLike[str] | None,
    value_range: tuple[Any, Any] | None,
) -> DownstreamTask:
    """Return what is mapped.

    Raises:
        ValueError: If neither or both of model and checkpoint are given, or the
            checkpoint is not of a task that makes maps.
    """
    if (model is None) == (checkpoint is None):
        raise ValueError('give either *model*, for embeddings, or *checkpoint*')
    if model is not None:
        return tasks.ExploraKNNTask(
            model=own_copy(model),
            weights=weights,
            delta=None if delta is None else os.fspath(delta),
            image_size=image_size,
            value_range=value_range,
        )
    assert checkpoint is not None
    content = read_file(Path(checkpoint))
    options = content.get('hyper_parameters')
    kind = str(options.get('_class_path', '')) if isinstance(options, dict) else ''
    # The command line stores the class in the checkpoint, a script does not.
    name = kind.rpartition('.')[2] or _by_keys(content.get('state_dict', {}))
    if name not in _MAPPED:
        raise ValueError(
            f'{checkpoint} is not a checkpoint of a task that makes maps: give one of'
            f' {", ".join(_MAPPED)}'
        )
    given: Any = {} if weights is True else {'weights': weights}
    loaded: DownstreamTask = getattr(tasks, name).load_from_checkpoint(
        Path(checkpoint), map_location='cpu', **given
    )
    return loaded


def _by_keys(state: Mapping[str, Any]) -> str:
    """Return which task wrote a checkpoint that does not name its class."""
    if 'head.linear.weight' in state:
        return 'ExploraClassificationTask'
    segmenter = any(key.startswith('head.classify') for key in state)
    return 'ExploraSegmentationTask' if segmenter else 'another task'


def _digest(task: DownstreamTask, scene: Scene, settings: dict[str, Any]) -> str:
    """Return a hash of all that a map depends on."""
    state = [
        *(type(task).__name__, base_fingerprint(task.backbone)),
        *(fingerprint(delta_state_dict(task)), task.mean, task.std),
        *(scene.path, file_stamp(scene.path), settings),
    ]
    return hashlib.sha256(json.dumps(state, default=str).encode()).hexdigest()


def _run_of(path: Path) -> str | None:
    """Return the hash in the tags of a map, None if there is none."""
    try:
        with open_raster(path) as file:
            run: str | None = file.tags().get('EXPLORA_RUN')
            return run
    except RasterioError:
        return None
