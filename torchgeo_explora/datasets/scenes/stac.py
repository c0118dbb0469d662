"""Scenes from STAC items (https://stacspec.org), which list the files of an image."""

import glob
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError

from torchgeo_explora.datasets.folder.walk import find_files, walk
from torchgeo_explora.datasets.pixels.raster_file import OWN_PIXELS, raster_suffix
from torchgeo_explora.datasets.scenes.band_stack import (
    GDAL_TYPES,
    Layout,
    Line,
    stack_bands,
)
from torchgeo_explora.datasets.scenes.scene import Scene

NO_ASSET = 'STAC items without the assets'
OTHER_ASSET = 'STAC items with assets of other kinds than TIFF, JPEG 2000, PNG and JPEG'
NO_STACK = 'STAC items whose assets cannot be stacked'
MALFORMED = 'malformed STAC items'
NOT_STAC = 'JSON files without STAC items'

_ENDING = '.json'
# What else a folder of items holds.
_CONTAINERS = ('Catalog', 'Collection')


def stac_files(path: str, assets: Sequence[str]) -> list[str] | None:
    """Return the JSON files that a path stands for, None if it is not about STAC.

    Args:
        path: A JSON file, a pattern of them, or a folder. A folder is about STAC if
            *assets* are given and it holds JSON files, at any depth.
        assets: Keys of assets to use.

    Raises:
        FileNotFoundError: If no file matches a pattern.
    """
    if path.lower().endswith(_ENDING):
        if os.path.isfile(path) or not glob.has_magic(path):
            return [path]
        found = sorted(find_files(path))
        if not found:
            raise FileNotFoundError(f'no STAC item found in {path}: no file matches')
        return found
    if not assets or not os.path.isdir(path):
        return None
    names = [name for name in walk(path) if name.lower().endswith(_ENDING)]
    return sorted(os.path.join(path, name) for name in names) or None


class _Item(NamedTuple):
    """An item with the parts that are used: links and, by asset and band, scales."""

    name: str
    content: Mapping[str, Any]
    links: dict[str, str]
    scales: dict[str, list[tuple[float | None, float]]]


def stac_scenes(
    files: str | Sequence[str], assets: Sequence[str], mask: str | None
) -> tuple[list[Scene], list[tuple[str, str]]]:
    """Return the items of STAC files as scenes.

    If `raster:bands` gives scale and offset of the values, all items are converted to
    the most common scale, without an offset: Sentinel-2's values of processing baseline
    04.00 and later lose the 1,000 by which they exceed earlier ones. Assets whose item
    gives their grid and type (`proj:shape`, `proj:transform`, `proj:code` and
    `raster:bands`) are stacked without opening them.

    Args:
        files: One or several: an item, an item collection, or a list of items or of
            their paths. Of several, those of catalogs and collections are left out.
        assets: Keys of the assets to stack, in the order of the bands; all bands of an
            asset are used.
        mask: Key of the asset with the cloud mask.

    Returns:
        The scenes, and (name, problem) of items that cannot be used.

    Raises:
        ValueError: If no asset is chosen, or the only file is not a STAC file.
    """
    given = [files] if isinstance(files, str) else files
    items: list[_Item] = []
    problems: list[tuple[str, str]] = []
    for path in given:
        try:
            found = list(_items(path))
        except ValueError:
            if len(given) == 1:
                raise
            problems.append((path, NOT_STAC))
            continue
        for base, content in found:
            item = _read(path, base, content, assets, mask)
            if isinstance(item, _Item):
                items.append(item)
            elif item is not None:
                problems.append(item)
    common = _common_scales(items)
    scenes: list[Scene] = []
    for item in items:
        properties = item.content.get('properties') or {}
        time = properties.get('datetime') or properties.get('start_datetime') or ''
        try:
            raster = _raster(item, assets, common)
        except (RasterioError, ValueError):
            problems.append((item.name, NO_STACK))
            continue
        scenes.append(
            Scene(item.name, raster, str(time), item.links[mask] if mask else None)
        )
    return scenes, problems


def _read(
    path: str, base: str, content: Any, assets: Sequence[str], mask: str | None
) -> _Item | tuple[str, str] | None:
    """Return an item, or its name and why it cannot be used; None for a catalog."""
    if not isinstance(content, dict):
        return path, MALFORMED
    if content.get('type') in _CONTAINERS:
        return None
    name = str(content.get('id') or f'an item of {path}')
    have = content.get('assets', {})
    if not isinstance(have, dict):
        return name, MALFORMED
    if not assets:
        raise ValueError(
            f'*assets* must name the assets of the STAC items, in the order of the'
            f' bands: item {name} of {path} has {", ".join(have) or "none"}'
        )
    wanted = [*assets, *([mask] if mask else [])]
    if not set(wanted) <= set(have):
        return name, NO_ASSET
    try:
        links = {key: _link(base, have[key]['href']) for key in wanted}
        scales = {key: _scales(content, have[key]) for key in assets}
    except (AttributeError, KeyError, TypeError, ValueError):
        return name, MALFORMED
    # A virtual raster could open anything that the item's author wants.
    if any(raster_suffix(link) not in OWN_PIXELS for link in links.values()):
        return name, OTHER_ASSET
    return _Item(name, content, links, scales)


def _items(path: str) -> Iterator[tuple[str, Any]]:
    """Yield the items of a file with the folder that their links start at."""
    with open(path, encoding='utf-8') as file:
        try:
            content = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f'{path} is not a STAC file ({error})') from error
    base = os.path.dirname(os.path.abspath(path))
    if isinstance(content, dict):
        single = content.get('type') == 'Feature'
        content = [content] if single else content.get('features', content)
    if not isinstance(content, list):
        raise ValueError(
            f'{path} is not a STAC item, an item collection or a list of items'
        )
    for item in content:
        if isinstance(item, str):
            yield from _items(os.path.join(base, item))
        else:
            yield base, item


def _link(base: str, href: str) -> str:
    """Return a link in the form that GDAL opens."""
    if href.startswith('s3://'):
        return f'/vsis3/{href[5:]}'
    if href.startswith('file://'):
        return href[7:]
    # Without `..`, two lists that name the same file give one scene.
    return href if '://' in href else os.path.normpath(os.path.join(base, href))


# Scale and offset of the values ------------------------------------------------------


def _bands(asset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what an asset says about its bands, under the names of STAC 1.0."""
    # STAC 1.1 has `bands` for all extensions; their values may be on the asset itself.
    bands = asset.get('raster:bands') or asset.get('bands') or [{}]
    shared = {key: asset[key] for key in _NAMES if key in asset}
    return [
        {_NAMES.get(key, key): value for key, value in {**shared, **band}.items()}
        for band in bands
    ]


_NAMES = {
    'raster:scale': 'scale',
    'raster:offset': 'offset',
    'data_type': 'data_type',
    'nodata': 'nodata',
}


def _scales(
    item: Mapping[str, Any], asset: Mapping[str, Any]
) -> list[tuple[float | None, float]]:
    """Return (scale, offset) of each band; the scale is None if it is not given."""
    # Earth Search applied the offset to its files, but still lists it.
    applied = (item.get('properties') or {}).get('earthsearch:boa_offset_applied')
    found: list[tuple[float | None, float]] = []
    for band in _bands(asset):
        scale, offset = band.get('scale'), band.get('offset') or 0.0
        scale = None if scale is None else float(scale)
        offset = 0.0 if applied is True else float(offset)
        if not math.isfinite(offset) or not (scale is None or 0 < scale < math.inf):
            raise ValueError(f'scale {scale} and offset {offset}')
        found.append((scale, offset))
    return found


def _common_scales(items: Sequence[_Item]) -> dict[tuple[str, int], float]:
    """Return the scale that most items have, by asset and band; 1 if none gives it."""
    counts: dict[tuple[str, int], Counter[float]] = {}
    for item in items:
        for key, bands in item.scales.items():
            for number, (scale, _) in enumerate(bands):
                count = counts.setdefault((key, number), Counter())
                if scale is not None:
                    count[scale] += 1
    return {
        key: count.most_common(1)[0][0] if count else 1.0
        for key, count in counts.items()
    }


def _raster(
    item: _Item, assets: Sequence[str], common: Mapping[tuple[str, int], float]
) -> str:
    """Return the file of the only asset, or a stack of all of them."""
    lines: dict[str, list[Line]] = {}
    for key in assets:
        lines[key] = []
        for number, (scale, offset) in enumerate(item.scales[key]):
            unit = common[key, number]
            # Without the rounding noise of ratios such as 0.1 / 0.0001.
            ratio = 1.0 if scale is None else round(scale / unit, 9)
            lines[key].append((ratio, round(offset / unit, 6)))
    changed = any(line != (1.0, 0.0) for each in lines.values() for line in each)
    if len(assets) == 1 and not changed:
        return item.links[assets[0]]
    found = {key: _layout(item.content, item.content['assets'][key]) for key in assets}
    return stack_bands(
        {key: item.links[key] for key in assets},
        item.name,
        {key: layout for key, layout in found.items() if layout is not None},
        lines,
    )


def _layout(item: Mapping[str, Any], asset: Mapping[str, Any]) -> Layout | None:
    """Return the grid and type that an item gives for an asset, None if it does not."""
    properties = item.get('properties') or {}

    def told(name: str) -> Any:
        return asset.get(name, properties.get(name))

    bands = _bands(asset)
    shape, place = told('proj:shape'), told('proj:transform')
    code = told('proj:code') or told('proj:epsg')
    types = tuple(band.get('data_type') for band in bands)
    complete = all('nodata' in band for band in bands) and set(types) <= set(GDAL_TYPES)
    if not (shape and place and code and complete):
        return None
    try:
        height, width = (int(side) for side in shape)
        transform = Affine(*(float(value) for value in place[:6]))
        nodata = bands[0]['nodata']
        return Layout(
            CRS.from_user_input(code),
            width,
            height,
            transform,
            tuple(str(kind) for kind in types),
            None if nodata is None else float(nodata),
        )
    except (CRSError, TypeError, ValueError):
        return None
