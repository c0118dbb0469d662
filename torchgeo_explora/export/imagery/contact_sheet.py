"""Small pictures of images and windows, side by side."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window
from torch import Tensor

from torchgeo_explora.callbacks.figures import contrast, stretched
from torchgeo_explora.datasets.pixels.figure import true_colour
from torchgeo_explora.datasets.pixels.raster_file import (
    OWN_PIXELS,
    open_raster,
    raster_suffix,
)
from torchgeo_explora.datasets.scenes.raster_dataset import Scenes
from torchgeo_explora.datasets.scenes.scene import Scene

_SIDE = 128
_LINE = 16
_GAP = 6
_COLUMNS = 6


def contact_sheet(
    examples: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]
) -> Image.Image:
    """Return a picture with the examples in the first rows, then the results.

    Only image files on this machine are opened. All pictures of the same stored type
    have the same contrast: the darkest and the brightest 2 % of their values are
    clipped.

    Args:
        examples: Rows with `path`, or with `scene`, `column`, `row`, `width` and
            `height`.
        results: The same, with `similarity`.
    """
    pictures = [_picture(row) for row in (*examples, *results)]
    # One contrast for 8 bits and reflectance would leave results black or white.
    found = [each for each in pictures if each is not None]
    limits = {
        dtype: contrast(
            torch.cat([values.flatten() for values, kind in found if kind == dtype])
        )
        for dtype in {kind for _, kind in found}
    }
    captions = ['example'] * len(examples) + [
        f'{rank}: {row["similarity"]:.3f}' for rank, row in enumerate(results, 1)
    ]
    # Results start on a new row.
    above = -(-len(examples) // _COLUMNS) * _COLUMNS
    places = [*range(len(examples)), *range(above, above + len(results))]
    height = _SIDE + _LINE + _GAP
    rows = -(-(places[-1] + 1) // _COLUMNS)
    sheet = Image.new('RGB', (_COLUMNS * (_SIDE + _GAP), rows * height), 'white')
    draw = ImageDraw.Draw(sheet)
    for place, picture, caption in zip(places, pictures, captions, strict=True):
        row, column = divmod(place, _COLUMNS)
        corner = (column * (_SIDE + _GAP), row * height)
        if picture is None:
            draw.rectangle((*corner, corner[0] + _SIDE, corner[1] + _SIDE), 'lightgray')
            draw.text((corner[0] + 4, corner[1] + 4), 'no picture', 'black')
        else:
            values, dtype = picture
            sheet.paste(_image(values, limits[dtype]), corner)
        draw.text((corner[0] + 2, corner[1] + _SIDE + 2), caption, 'black')
    return sheet


def _picture(row: dict[str, Any]) -> tuple[Tensor, str] | None:
    """Return the pixels of a row, (C, H, W) of 3 or 1 bands, and their stored type.

    None if they are not on this machine or cannot be read.
    """
    path = str(row.get('scene', row.get('path', '')))
    if not os.path.isfile(path) or raster_suffix(path) not in (*OWN_PIXELS, '.vrt'):
        return None
    window = None
    try:
        if 'scene' in row:
            window = Window(*(row[n] for n in ('column', 'row', 'width', 'height')))
            handle: Any = Scenes([Scene(path, path)]).handle(path)
        else:
            handle = open_raster(path)
        with handle:
            values = handle.read(
                window=window,
                out_shape=(handle.count, _SIDE, _SIDE),
                resampling=Resampling.bilinear,
            ).astype(np.float32)
            names = [name or '' for name in handle.descriptions]
            dtype = handle.dtypes[0]
    except (OSError, ValueError, RasterioError):
        return None
    return true_colour(torch.from_numpy(values), names), dtype


def _image(picture: Tensor, limits: tuple[float, float]) -> Image.Image:
    pixels = (255 * stretched(picture, limits)).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.expand(-1, -1, 3).contiguous().numpy())
