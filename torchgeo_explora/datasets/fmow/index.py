"""The index of fMoW: images, labels, boxes, times and places in one table."""

import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_explora.datasets.fmow.classes import CLASS_TO_IDX
from torchgeo_explora.datasets.fmow.listing import (
    RELABELLED,
    UNKNOWN,
    Listing,
    list_csv,
    list_folders,
    split_folder,
)
from torchgeo_explora.datasets.fmow.metadata import VIEW, Metadata, read_sidecar
from torchgeo_explora.datasets.tables.index_file import (
    TableFile,
    file_stamp,
    index_path,
    parse_time,
)
from torchgeo_explora.datasets.tables.problems import with_notes

NO_METADATA = 'images without readable metadata'
NO_BOX = 'images without a box'
_OTHER_TIME = 'times that disagree between the CSV file and the metadata'
NO_TIME = 'images without a time'
# Problems that are reported although no sample is lost.
_NOTED = (RELABELLED, _OTHER_TIME)

_SCHEMA = pa.schema(
    {
        'path': pa.string(),
        'label': pa.int16(),
        'location': pa.string(),
        'timestamp': pa.string(),
        'place': pa.string(),
        'country': pa.string(),
        **dict.fromkeys(VIEW, pa.float32()),
        'boxes': pa.list_(pa.list_(pa.int32(), 4)),
        'box_labels': pa.list_(pa.int16()),
    }
)


def open_index(
    root: str, split: str, variant: str, csv: str | None, index_dir: str | None
) -> tuple[TableFile, str]:
    """Open the index of a split, or build it.

    The file is `.fmow_<split>_<variant>.arrow` in *root*, or has the name of the CSV
    file and is beside it; *index_dir* replaces both places. A report of problems,
    `.report.csv`, is written next to it. The index is built again if the CSV file or a
    class folder has changed. Changes deeper down go unnoticed: delete the index then.

    Args:
        root: Folder of the splits.
        split: 'train', 'val' or 'test'.
        variant: 'rgb' or 'msrgb'.
        csv: CSV file instead of the official folders.
        index_dir: Folder of the index; that of the data if None.

    Returns:
        The table with `_SCHEMA` and the notes of `with_notes`, and the folder that its
        paths start at.

    Raises:
        NoSamplesError: If no image is found.
        ValueError: If the CSV file has wrong columns.
    """
    if csv is None:
        base, home = split_folder(root, split), root
        name = f'fmow_{split}_{variant}'
        source: dict[str, Any] = {'folders': _dates(base)}
    else:
        base = home = os.path.dirname(os.path.abspath(csv))
        name = os.path.basename(csv)
        source = {'csv': file_stamp(csv)}
    source |= {'version': 2, 'base': os.path.abspath(base)}
    path = index_path(home, name, index_dir)
    lister = partial(list_folders, root, split, variant)
    table = TableFile(
        path,
        source,
        lambda: _build(lister() if csv is None else list_csv(csv), path),
    )
    return table, base


def _build(listing: Listing, path: str) -> pa.Table:
    frame, problems = listing.frame, list(listing.problems)
    found = _read_all(listing)
    frame['timestamp'] = _times(frame, found, problems)
    frame['place'] = [m.place if m else '' for m in found]
    frame['country'] = [m.country if m else '' for m in found]
    for number, name in enumerate(VIEW):
        frame[name] = [m.view[number] if m else math.nan for m in found]
    boxes = [m.boxes if m else () for m in found]
    box_labels = [
        # Boxes of the challenge's extra classes are never cut out.
        [
            label if box.category is None else CLASS_TO_IDX.get(box.category, -1)
            for box in items
        ]
        for label, items in zip(frame['label'], boxes, strict=True)
    ]
    # A CSV file of images that are already cropped has no metadata at all.
    described = bool(frame['json'].any())
    for name, metadata, labels in zip(frame['path'], found, box_labels, strict=True):
        if metadata is None and described:
            problems.append((name, NO_METADATA))
        elif metadata is not None and not labels:
            problems.append((name, NO_BOX))
        elif labels and max(labels) < 0:
            problems.append((name, UNKNOWN))
    columns: dict[str, Any] = {name: frame[name] for name in _SCHEMA.names[:-2]}
    columns['boxes'] = [[box.xywh for box in items] for items in boxes]
    columns['box_labels'] = box_labels
    table = pa.table(columns, schema=_SCHEMA)
    return with_notes(table, problems, listing.listed, path)


def _read_all(listing: Listing) -> list[Metadata | None]:
    """Read the metadata of every image that has any."""

    def read(row: tuple[str, bool]) -> Metadata | None:
        name, exists = row
        if not exists:
            return None
        text = os.path.join(listing.base, f'{os.path.splitext(name)[0]}.json')
        try:
            return read_sidecar(text)
        except (OSError, ValueError):
            return None

    rows = list(zip(listing.frame['path'], listing.frame['json'], strict=True))
    if not listing.frame['json'].any():
        return [None] * len(rows)
    # Threads hide the latency of network disks.
    with ThreadPoolExecutor(16) as pool:
        chunks = [rows[i : i + 1000] for i in range(0, len(rows), 1000)]
        read_chunk = pool.map(lambda chunk: [read(row) for row in chunk], chunks)
        bar = tqdm(read_chunk, 'index', len(chunks), unit=' k images', disable=None)
        return [metadata for chunk in bar for metadata in chunk]


def _times(
    frame: pd.DataFrame,
    found: list[Metadata | None],
    problems: list[tuple[str, str]],
) -> list[str]:
    """Return the times in the metadata where they are known, else those listed."""
    times = []
    for name, listed, metadata in zip(
        frame['path'], frame['timestamp'], found, strict=True
    ):
        own = metadata.timestamp if metadata else ''
        time = own if own and parse_time(own) else listed
        times.append(time if time and parse_time(time) else '')
        if not times[-1]:
            problems.append((name, NO_TIME))
        elif own and listed and parse_time(own) != parse_time(listed):
            problems.append((name, _OTHER_TIME))
    return times


def _dates(base: str) -> dict[str, int]:
    if not os.path.isdir(base):
        return {}
    with os.scandir(base) as entries:
        return {e.name: e.stat().st_mtime_ns for e in entries if e.is_dir()}


def check_index(
    index: TableFile, losing: tuple[str, ...], max_missing: float, what: str
) -> None:
    """Warn of the problems noted in an index, or refuse it.

    Args:
        index: An index of fMoW.
        losing: Problems that cost a sample in this use.
        max_missing: Largest share of the samples that may be lost, in [0, 1].
        what: The data set in words.

    Raises:
        FileNotFoundError: If more samples are lost.
    """
    counts, examples = index.note('counts'), index.note('examples')
    report = index.note('report')
    for problem in set(_NOTED) & counts.keys():
        warnings.warn(
            f'{what} has {counts[problem]} {problem}, such as {examples[problem]}: the'
            f' folder and the metadata take precedence. All are listed in {report}',
            stacklevel=3,
        )
    index.check_missing(max_missing, what, losing)
