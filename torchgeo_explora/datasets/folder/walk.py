"""The files below a folder, all of them or by a pattern."""

import glob
import os
import posixpath
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase


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
                # A broken link counts as an image that cannot be read.
                elif entry.is_file() or not os.path.exists(entry.path):
                    yield name


def _is_loop(root: str, above: tuple[str, ...], link: str) -> bool:
    target = os.path.realpath(link)
    return any(os.path.realpath(os.path.join(root, name)) == target for name in above)


def find_files(pattern: str) -> Iterator[str]:
    """Yield the plain files that a pattern such as `s2/**/*.tif` matches.

    `**` is any number of folders, as `walk` finds them: links are not followed in
    circles, unlike in Python's own `glob`.

    Args:
        pattern: A path in which `*`, `?` and `[...]` stand for parts of names.
    """
    parts = pattern.split('/')
    if '**' not in parts:
        yield from (path for path in glob.glob(pattern) if os.path.isfile(path))
        return
    first = parts.index('**')
    above, below = '/'.join(parts[:first]), parts[first:]
    folders = glob.glob(above or '/') if first else ['.']
    for folder in filter(os.path.isdir, folders):
        for name in walk(folder):
            path = os.path.join(folder, name) if first else name
            if _matches(name.split('/'), below) and os.path.isfile(path):
                yield path


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a path match those of a pattern."""
    if not pattern:
        return not names
    if pattern[0] == '**':
        # At the end of a pattern, `**` matches any file.
        rest = pattern[1:] or ['*']
        return any(_matches(names[i:], rest) for i in range(len(names)))
    return (
        bool(names)
        and fnmatchcase(names[0], pattern[0])
        and _matches(names[1:], pattern[1:])
    )
