"""The index of fMoW-Sentinel: its CSV file, sorted and checked against the files."""

import os

import pandas as pd
import pyarrow as pa

from torchgeo_explora.datasets.fmow.classes import CLASS_TO_IDX
from torchgeo_explora.datasets.fmow.listing import UNKNOWN
from torchgeo_explora.datasets.fmow.metadata import centre
from torchgeo_explora.datasets.tables.dataset import NoSamplesError
from torchgeo_explora.datasets.tables.index_file import (
    TableFile,
    file_stamp,
    index_path,
    look_up,
    parse_time,
    read_csv,
)
from torchgeo_explora.datasets.tables.problems import ABSENT, with_notes

_NO_TIME = 'rows without a time'
_COLUMNS = ('category', 'location_id', 'image_id', 'timestamp')
_SCHEMA = pa.schema(
    {'path': pa.string(), 'label': pa.int16(), 'year': pa.int16(), 'place': pa.string()}
)


def open_sentinel_index(
    root: str, split: str, csv: str | None, index_dir: str | None
) -> TableFile:
    """Open the index of a split, or build it.

    Args:
        root: Folder of the images, and of the CSV file if *csv* is None.
        split: Name of the split in files and folders: 'train', 'val' or 'test_gt'.
        csv: Another CSV file.
        index_dir: Folder of the index; *root* if None.

    Returns:
        A table of `path` (in *root*), `label`, `year` and `place`, sorted by
        class, place and time, with the notes of `with_notes`.

    Raises:
        NoSamplesError: If there is no CSV file.
        ValueError: If the CSV file lacks columns.
    """
    file = os.path.join(root, f'{split}.csv') if csv is None else csv
    if not os.path.isfile(file):
        raise NoSamplesError(
            f'there is no {file}: pass download=True, or *root* must hold {split}.csv'
            f' and fmow-sentinel, from https://purl.stanford.edu/vg497cb6002'
        )
    source = {
        'csv': [os.path.abspath(file), *file_stamp(file)],
        'root': os.path.abspath(root),
        'split': split,
        'version': 2,
    }
    path = index_path(root, os.path.basename(file), index_dir)
    return TableFile(path, source, lambda: _build(file, root, split, path))


def _build(file: str, root: str, split: str, path: str) -> pa.Table:
    # As text: one empty field would turn the other rows' numbers into floats.
    frame = read_csv(file, _COLUMNS, dict.fromkeys(_COLUMNS, pa.string())).to_pandas()
    listed = len(frame)
    frame['path'] = _paths(frame, root, split)
    frame['place'] = pd.to_numeric(frame['location_id'], errors='coerce')
    frame = frame.sort_values(['category', 'place', 'timestamp'], kind='stable')
    frame = frame.reset_index(drop=True)
    labels = frame['category'].map(CLASS_TO_IDX)
    codes = frame['timestamp'].map(parse_time)
    years = codes.map(lambda code: code[0] + 2002 if code else -1)
    exists, _ = look_up(root, frame['path'])
    problems: list[tuple[str, str]] = []
    for what, wrong in (
        (UNKNOWN, labels.isna()),
        (_NO_TIME, labels.notna() & (years < 0)),
        (ABSENT, labels.notna() & (years >= 0) & ~exists),
    ):
        problems += [(name, what) for name in frame['path'][wrong]]
    kept = (labels.notna() & (years >= 0) & exists).to_numpy()
    polygons = frame['polygon'] if 'polygon' in frame else pd.Series('', frame.index)
    index = pa.table(
        {
            'path': frame['path'][kept],
            'label': labels[kept].astype('int16'),
            'year': years[kept],
            'place': polygons[kept].map(centre),
        },
        schema=_SCHEMA,
    )
    return with_notes(index, problems, listed, path)


def _paths(frame: pd.DataFrame, root: str, split: str) -> pd.Series:
    """Return the paths of the images, as the data set's documentation gives them."""
    inside = os.path.isdir(os.path.join(root, split))
    folder = split if inside else f'fmow-sentinel/{split}'
    category = frame['category']
    place = category + '_' + frame['location_id']
    name = place + '_' + frame['image_id']
    return folder + '/' + category + '/' + place + '/' + name + '.tif'
