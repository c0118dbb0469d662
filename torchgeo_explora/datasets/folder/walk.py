"""The files below a folder."""

import os
import posixpath
from collections.abc import Iterator


def walk(root: str) -> Iterator[str]:
    """Yield the files below a folder, relative to it, with forward slashes.

    Hidden files and folders are passed over, as are pipes and devices, which may never
    end. A link to a folder that the link is in is not followed. No file is opened.

    Args:
        root: The folder.
    """
    # The folders that are still to list, each with those above it.
    waiting: list[tuple[str, ...]] = [('',)]
    while waiting:
        above = waiting.pop()
        folder = above[-1]
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith(('.', '__MACOSX')):
                    continue
                name = posixpath.join(folder, entry.name)
                if entry.is_dir():
                    if not (entry.is_symlink() and _is_loop(root, above, entry.path)):
                        waiting.append((*above, name))
                # A link to nothing is an image that cannot be read.
                elif entry.is_file() or not os.path.exists(entry.path):
                    yield name


def _is_loop(root: str, above: tuple[str, ...], link: str) -> bool:
    target = os.path.realpath(link)
    return any(os.path.realpath(os.path.join(root, name)) == target for name in above)
