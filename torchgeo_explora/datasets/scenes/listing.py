"""Which scenes there are: folders, patterns, files, and STAC items."""

import os
import re
from collections.abc import Sequence

from torchgeo_explora.datasets.folder.walk import find_files, walk
from torchgeo_explora.datasets.scenes.scene import Scene
from torchgeo_explora.datasets.scenes.stac import stac_files, stac_scenes

# Suffixes of scenes in a folder, in lower case.
_SUFFIXES = ('.tif', '.tiff', '.vrt', '.jp2')
NOT_TEXT = 'files whose names are not UTF-8'

# A date, perhaps with a time: 20200131, 2020-01-31, 20200131T102030.
_DATE = re.compile(
    r'(?<!\d)((?:19|20)\d\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])'
    r'(?:T([01]\d|2[0-3]):?([0-5]\d)?:?([0-5]\d)?)?(?!\d)'
)


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
            that GDAL reads (VRTs and /vsi paths too), `.json` files of STAC items or
            patterns of them; with *assets*, a folder of them too.
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
        items = stac_files(path, assets)
        if items is not None:
            found, faults = stac_scenes(items, assets, mask)
            problems += faults
        else:
            files = [f for f in _files(path) if mask is None or not f.endswith(mask)]
            named = [file for file in files if _is_text(file)]
            problems += [(ascii(f), NOT_TEXT) for f in files if not _is_text(f)]
            found = [_file_scene(file, mask) for file in named]
        scenes |= {scene.path: scene for scene in found}
    if not scenes and not problems:
        names = ', '.join(os.fspath(place) for place in given)
        masks = mask and ', and files that end with *mask* are not scenes'
        raise FileNotFoundError(
            f'no scene found in {names or "no *paths*"}: a STAC file needs items'
            f'{masks or ""}'
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
            f'no scene found in {path}: give a folder with {", ".join(_SUFFIXES)}'
            f' files, a pattern, a file or STAC items (.json)'
        )
    return files
