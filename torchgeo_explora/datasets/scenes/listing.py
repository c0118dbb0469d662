"""Which scenes there are: folders, patterns, files, and STAC items."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rasterio.errors import RasterioError

from torchgeo_explora.datasets.folder.walk import find_files, walk
from torchgeo_explora.datasets.pixels.raster_file import OWN_PIXELS, raster_suffix
from torchgeo_explora.datasets.scenes.band_stack import stack_bands

# Suffixes of scenes in a folder, in lower case.
_SUFFIXES = ('.tif', '.tiff', '.vrt', '.jp2')
NO_ASSET = 'STAC items without the assets'
NOT_TEXT = 'files whose names are not UTF-8'
OTHER_ASSET = 'STAC items with assets of other kinds than TIFF, JPEG 2000, PNG and JPEG'
NO_STACK = 'STAC items whose assets cannot be stacked'

# A date, perhaps with a time: 20200131, 2020-01-31, 20200131T102030.
_DATE = re.compile(
    r'(?<!\d)((?:19|20)\d\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])'
    r'(?:T([01]\d|2[0-3]):?([0-5]\d)?:?([0-5]\d)?)?(?!\d)'
)


class Scene(NamedTuple):
    """One scene.

    `path` is a file or the XML of a virtual raster, `time` is in ISO format or empty,
    and `mask` is the file of its cloud mask.
    """

    name: str
    path: str
    time: str = ''
    mask: str | None = None


def _file_scene(path: str, mask: str | None = None) -> Scene:
    """Return a file as a scene.

    Args:
        path: The file, whose name may contain a date.
        mask: What replaces its suffix in the name of its cloud mask.
    """
    stem = os.path.splitext(path)[0]
    return Scene(path, path, find_time(os.path.basename(path)), mask and stem + mask)


def find_time(name: str) -> str:
    """Return the first date (and time) in a file name in ISO format, '' if none."""
    match = _DATE.search(name)
    if match is None:
        return ''
    year, month, day, hour, minute, second = match.groups('00')
    return f'{year}-{month}-{day}T{hour}:{minute}:{second}'


def list_scenes(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    assets: Sequence[str] = (),
    mask: str | None = None,
) -> tuple[list[Scene], list[tuple[str, str]]]:
    """List scenes.

    Args:
        paths: Folders (with their sub-folders), patterns such as `s2/**/*.tif`, rasters
            that GDAL reads (VRTs and /vsi paths too), `.json` files of STAC items.
        assets: Keys of the assets of a STAC item to use, in the order of the bands.
        mask: Where cloud masks are: what replaces the suffix of a scene's file, such as
            `_cloud.tif`, or the key of a STAC item's asset.

    Returns:
        Scenes, sorted and without duplicates, and (name, problem) of those that cannot
        be used.

    Raises:
        FileNotFoundError: If a path does not exist, or there is no scene.
        ValueError: If a STAC file is not one.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    scenes: dict[str, Scene] = {}
    problems: list[tuple[str, str]] = []
    for place in given:
        path = os.fspath(place)
        if path.lower().endswith('.json'):
            found, faults = stac_scenes(path, assets, mask)
            problems += faults
        else:
            files = [f for f in _files(path) if mask is None or not f.endswith(mask)]
            named = [file for file in files if _is_text(file)]
            problems += [(ascii(f), NOT_TEXT) for f in files if not _is_text(f)]
            found = [_file_scene(file, mask) for file in named]
        scenes |= {scene.path: scene for scene in found}
    if not scenes and not problems:
        names = ', '.join(os.fspath(place) for place in given)
        raise FileNotFoundError(
            f'no scene found in {names or "no *paths*"}: a'
            f' STAC file needs items, and files that end with *mask* are not scenes'
        )
    return sorted(scenes.values()), problems


def _is_text(name: str) -> bool:
    """Return whether a file name can be written to a table."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files(path: str) -> list[str]:
    if path.startswith('/vsi') or os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        names = [name for name in walk(path) if name.lower().endswith(_SUFFIXES)]
        found = [os.path.join(path, name) for name in names]
    else:
        found = list(find_files(path))
    # Links may lead to the same file.
    files = list({os.path.realpath(f): f for f in sorted(found, reverse=True)}.values())
    if not files:
        raise FileNotFoundError(
            f'no scene found in {path}: *paths* takes folders with'
            f' {", ".join(_SUFFIXES)} files, patterns, files and STAC items (.json)'
        )
    return files


def stac_scenes(
    path: str, assets: Sequence[str], mask: str | None
) -> tuple[list[Scene], list[tuple[str, str]]]:
    """Return the items of a STAC file as scenes.

    Args:
        path: An item, an item collection, or a list of items or of their paths.
        assets: Keys of the assets to stack, in the order of the bands; all bands of an
            asset are used.
        mask: Key of the asset with the cloud mask.

    Returns:
        The scenes, and (name, problem) of items that cannot be used.

    Raises:
        ValueError: If no asset is chosen, or the file is not a STAC file.
    """
    scenes: list[Scene] = []
    problems: list[tuple[str, str]] = []
    for base, item in _items(path):
        name = str(item.get('id', 'an item'))
        have = item.get('assets') or {}
        if not assets:
            raise ValueError(
                f'*assets* must name the assets of the STAC items, in the order of the'
                f' bands: item {name} of {path} has {", ".join(have) or "none"}'
            )
        wanted = [*assets, *([mask] if mask else [])]
        if not set(wanted) <= set(have):
            problems.append((name, NO_ASSET))
            continue
        links = {key: _link(base, have[key]['href']) for key in wanted}
        # A virtual raster could make anything of the item's author be opened.
        if any(raster_suffix(link) not in OWN_PIXELS for link in links.values()):
            problems.append((name, OTHER_ASSET))
            continue
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
    """Yield the items of a file with the folder that their links start at."""
    with open(path, encoding='utf-8') as file:
        content = json.load(file)
    base = os.path.dirname(os.path.abspath(path))
    if isinstance(content, dict):
        single = content.get('type') == 'Feature'
        content = [content] if single else content.get('features')
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
    return href if '://' in href else os.path.join(base, href)
