"""Which scenes there are: folders, patterns, files, lists of STAC items."""

import glob
import os
from collections.abc import Sequence

from torchgeo_explora.datasets.scenes.scene import Scene, file_scene
from torchgeo_explora.datasets.scenes.stac import stac_scenes

#: Suffixes of scenes in a folder, in lower case.
SUFFIXES = ('.tif', '.tiff', '.vrt', '.jp2')


def list_scenes(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    assets: Sequence[str] = (),
    mask: str | None = None,
) -> tuple[list[Scene], list[tuple[str, str]]]:
    """List scenes.

    Args:
        paths: Folders (with all below), patterns such as ``s2/**/*.tif``, rasters that
            GDAL reads (a VRT too, and /vsi paths), ``.json`` files of STAC items.
        assets: Keys of the assets of a STAC item to take, in the order of the bands.
        mask: Where cloud masks are: what stands in place of the suffix of a scene's
            file, such as ``_cloud.tif``, and the key of a STAC item's asset.

    Returns:
        Scenes, sorted, each once; and (name, problem) of those that cannot be used.

    Raises:
        FileNotFoundError: If a path leads to nothing, or all of them to no scene.
        ValueError: If a STAC file is none.
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
            found = [file_scene(file, mask) for file in files]
        scenes |= {scene.path: scene for scene in found}
    if not scenes and not problems:
        names = ', '.join(os.fspath(place) for place in given)
        raise FileNotFoundError(
            f'no scene found in {names or "no *paths*"}: a'
            f' STAC file needs items, and files that end with *mask* are no scenes'
        )
    return sorted(scenes.values()), problems


def _files(path: str) -> list[str]:
    if path.startswith('/vsi') or os.path.isfile(path):
        return [path]
    pattern = os.path.join(glob.escape(path), '**') if os.path.isdir(path) else path
    files = [f for f in glob.glob(pattern, recursive=True) if os.path.isfile(f)]
    if os.path.isdir(path):
        files = [f for f in files if f.lower().endswith(SUFFIXES)]
    if not files:
        raise FileNotFoundError(
            f'no scene found in {path}: *paths* takes folders with'
            f' {", ".join(SUFFIXES)} files, patterns, files and STAC items (.json)'
        )
    return files
