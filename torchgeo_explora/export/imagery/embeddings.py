"""Embeddings of images and scenes, in a file that says what each one is of."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from rasterio.errors import RasterioError

from torchgeo_explora.adapt import merged
from torchgeo_explora.callbacks import EmbeddingWriter
from torchgeo_explora.callbacks.writers.parquet import Dtype
from torchgeo_explora.datamodules import ImageFolderDataModule, ScenesDataModule
from torchgeo_explora.datamodules.parts import PartsDataModule
from torchgeo_explora.datasets.folder.walk import walk
from torchgeo_explora.datasets.pixels.raster_file import OWN_PIXELS, open_raster
from torchgeo_explora.datasets.tables.dataset import OnError
from torchgeo_explora.models import Backbone
from torchgeo_explora.models.backbones.tokens import Pooling
from torchgeo_explora.paths import expanded, local_path
from torchgeo_explora.tasks import ExploraKNNTask
from torchgeo_explora.tasks.run.backbone import Model, Weights

type Kind = Literal['auto', 'images', 'scenes']


def embed(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    model: Model,
    weights: Weights = True,
    delta: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    *,
    window: int | None = None,
    pooling: Pooling | None = None,
    dtype: Dtype = 'float32',
    kind: Kind = 'auto',
    bands: Sequence[int | str] | None = None,
    assets: Sequence[str] = (),
    in_channels: int | None = None,
    value_range: tuple[Any, Any] | None = None,
    nodata: float | None = None,
    mask: str | None = None,
    crs: str | None = None,
    on_error: OnError = 'raise',
    batch_size: int = 64,
    num_workers: int = 0,
    share: str = '0/1',
    overwrite: bool = False,
    **trainer: Any,
) -> Path:
    """Write the embeddings of a folder of images, or of all windows of scenes.

    The file is described in `EmbeddingWriter`; for scenes it is GeoParquet. If the
    process is interrupted, the same call continues where it stopped and gives the same
    file.

    Args:
        source: A folder of images; or a scene, a folder of scenes, a pattern, a VRT or
            a `.json` file of STAC items.
        output: The file to write.
        model: As for `ExploraKNNTask`.
        weights: As for `ExploraKNNTask`.
        delta: A delta for these weights.
        image_size: Side of the images that the model sees. By default, for a model
            given by name, that of the delta's run, or 224 without one.
        window: Side of the windows of scenes in pixels, which are resized to
            *image_size*; *image_size* if None.
        pooling: As for `ExploraKNNTask`.
        dtype: 'float32', 'float16', or 'int8' with a column of scales.
        kind: Whether *source* is a folder of 'images' or of 'scenes'; with 'auto', a
            folder whose first raster has a place on Earth is one of scenes.
        bands: Names or numbers (from 1) of the bands, in the model's order.
        assets: Keys of the assets of STAC items, in the order of the bands.
        in_channels: Channels of a model by name; 3 if None.
        value_range: (low, high) of the values; by default that of the stored type.
        nodata: Value of pixels without data, if scenes do not declare it.
        mask: What replaces a scene's suffix in the name of its cloud mask, such as
            '_cloud.tif': these files are not scenes.
        crs: Coordinate system of the geometries; that of the scenes if they have one in
            common, else longitude and latitude.
        on_error: 'raise' stops at what cannot be read, 'skip' leaves it out.
        batch_size: Images in a batch; each part of the work is one batch.
        num_workers: Processes that read images.
        share: Which part of the work is done here, such as '0/4' to '3/4' for the tasks
            of a SLURM array that share the folder of *output*. The same call without
            *share* joins the parts.
        overwrite: Whether to replace a file at *output*.
        **trainer: Arguments of Lightning's `Trainer`, such as *devices* or *precision*.

    Returns:
        The file.

    Raises:
        FileExistsError: If there is a file at *output*.
        OSError: If a file cannot be read or written.
        ValueError: If an argument is wrong, the delta belongs to another base, or no
            window has data.
    """
    target = local_path('output', output)
    if target.exists() and not overwrite:
        raise FileExistsError(
            f'{target} exists: choose another *output*, or pass *overwrite*'
        )
    part = parse_share(share)
    writer = EmbeddingWriter(target, dtype, crs)
    task = ExploraKNNTask(
        pooling=pooling,
        model=own_copy(model),
        weights=weights,
        delta=None if delta is None else os.fspath(delta),
        image_size=image_size,
        in_channels=in_channels,
        value_range=value_range,
    )
    options: dict[str, Any] = {
        'bands': bands,
        'value_range': value_range,
        'on_error': on_error,
        'batch_size': batch_size,
        'num_workers': num_workers,
    }
    datamodule = open_source(
        source,
        kind,
        {
            'size': window or task.image_size,
            'assets': assets,
            'nodata': nodata,
            'mask': mask,
        },
        {'size': task.image_size},
        options,
    )
    datamodule.share = part
    new_trainer(target, [writer], trainer).predict(
        task, datamodule, return_predictions=False
    )
    if part[1] == 1 and not target.exists():
        raise ValueError(
            f'{os.fspath(source)} has no data at all, so {target} was not written:'
            ' check *nodata*'
        )
    return target


def own_copy(model: Model) -> Model:
    """Return a plain copy of a backbone, for a task to freeze; a name unchanged."""
    if not isinstance(model, Backbone):
        return model
    return merged(model)


def new_trainer(target: Path, callbacks: list[Any], options: Any) -> Trainer:
    """Return a trainer that predicts, and writes nothing of its own."""
    return Trainer(
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **{'devices': 1, 'default_root_dir': target.parent, **options},
    )


def open_source(
    source: str | os.PathLike[str],
    kind: Kind,
    of_scenes: Mapping[str, Any],
    of_images: Mapping[str, Any],
    options: Mapping[str, Any],
) -> PartsDataModule:
    """Return a data module of scenes or of a folder of images.

    Args:
        source: As for `embed`.
        kind: As for `embed`.
        of_scenes: Arguments for scenes.
        of_images: Arguments for a folder of images.
        options: Arguments for both.

    Raises:
        FileNotFoundError: If there is nothing at *source*.
        ValueError: If the kind is not known.
    """
    if kind not in ('auto', 'images', 'scenes'):
        raise ValueError(f"*kind* is {kind!r}: choose 'auto', 'images' or 'scenes'")
    place = expanded(source)
    images = kind == 'images' or (kind == 'auto' and _is_image_folder(place))
    given = {k: v for k, v in options.items() if v is not None}
    if images:
        return ImageFolderDataModule(place, **of_images, **given)
    return ScenesDataModule(place, **of_scenes, **given)


def _is_image_folder(place: str) -> bool:
    """Return whether a path is a folder whose first raster has no place on Earth."""
    if not os.path.isdir(place):
        return False
    suffixes = (*OWN_PIXELS, '.vrt')
    first = next((f for f in walk(place) if f.lower().endswith(suffixes)), None)
    if first is None or first.lower().endswith('.vrt'):
        return first is None
    try:
        with open_raster(os.path.join(place, first)) as file:
            placed = file.crs is not None or bool(file.gcps[0])
    except RasterioError:
        placed = first.lower().endswith(('.tif', '.tiff', '.jp2'))
    return not placed


def parse_share(share: str) -> tuple[int, int]:
    """Return (i, n) of a share 'i/n'.

    Raises:
        ValueError: If it is not one.
    """
    first, _, second = share.partition('/')
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ValueError(
            f"*share* is {share!r}: give i/n with i from 0 to n - 1, such as '0/4'"
        )
    return int(first), int(second)
