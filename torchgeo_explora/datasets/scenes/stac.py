"""STAC items as scenes."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from rasterio.errors import RasterioError

from torchgeo_explora.datasets.scenes.band_stack import stack_bands
from torchgeo_explora.datasets.scenes.scene import Scene

NO_ASSET = 'STAC items without the assets'
NO_STACK = 'STAC items whose assets cannot be stacked'


def stac_scenes(
    path: str, assets: Sequence[str], mask: str | None
) -> tuple[list[Scene], list[tuple[str, str]]]:
    """Return the items of a STAC file as scenes.

    Args:
        path: An item, an item collection, or a list of items or of their paths.
        assets: Keys of the assets to stack, in the order of the bands; one that has
            several bands brings them all.
        mask: Key of the asset with the cloud mask.

    Returns:
        The scenes, and (name, problem) of items that cannot be used.

    Raises:
        ValueError: If no asset is chosen, or the file is no STAC file.
    """
    scenes: list[Scene] = []
    problems: list[tuple[str, str]] = []
    for base, item in _items(path):
        name = str(item.get('id', 'an item'))
        have = item.get('assets') or {}
        if not assets:
            raise ValueError(
                f'*assets* says which assets of the STAC items to take, in the order'
                f' of the bands: item {name} of {path} has {", ".join(have) or "none"}'
            )
        wanted = [*assets, *([mask] if mask else [])]
        if not set(wanted) <= set(have):
            problems.append((name, NO_ASSET))
            continue
        links = {key: _link(base, have[key]['href']) for key in wanted}
        properties = item.get('properties') or {}
        time = properties.get('datetime') or properties.get('start_datetime') or ''
        try:
            raster = (
                links[assets[0]]
                if len(assets) == 1
                else stack_bands({key: links[key] for key in assets})
            )
        except (RasterioError, ValueError):
            problems.append((name, NO_STACK))
            continue
        scenes.append(Scene(name, raster, str(time), links[mask] if mask else None))
    return scenes, problems


def _items(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the items of a file, each with the folder that its links start at."""
    with open(path, encoding='utf-8') as file:
        content = json.load(file)
    base = os.path.dirname(os.path.abspath(path))
    if isinstance(content, dict):
        alone = content.get('type') == 'Feature'
        content = [content] if alone else content.get('features')
    if not isinstance(content, list):
        raise ValueError(
            f'{path} is no STAC item, no item collection and no list of items'
        )
    for item in content:
        if isinstance(item, str):
            yield from _items(os.path.join(base, item))
        else:
            yield base, item


def _link(base: str, href: str) -> str:
    """Return what GDAL opens for a link."""
    if href.startswith('s3://'):
        return f'/vsis3/{href[5:]}'
    if href.startswith('file://'):
        return href[7:]
    return href if '://' in href else os.path.join(base, href)
