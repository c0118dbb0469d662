"""Which fMoW images there are: the official folders, or SatMAE's CSV files."""

import os
import posixpath
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from torchgeo_explora.datasets.fmow.classes import CLASS_TO_IDX, CLASSES
from torchgeo_explora.datasets.tables.dataset import NoSamplesError
from torchgeo_explora.datasets.tables.index_file import look_up, names_in, read_csv
from torchgeo_explora.datasets.tables.problems import ABSENT

# Folder names of each split; the first that exists is used.
_FOLDERS = {'train': ('train',), 'val': ('val',), 'test': ('test_gt', 'test')}

RELABELLED = 'labels that disagree with their folder'
UNKNOWN = 'files of an unknown class'


class Listing(NamedTuple):
    """A frame of images: `path`, `label`, `location`, `timestamp` and `json`.

    `path` is relative to `base`; `json` says whether there is a metadata file too.
    `problems` are (path, problem).
    """

    base: str
    frame: pd.DataFrame
    problems: list[tuple[str, str]]
    listed: int


def split_folder(root: str, split: str) -> str:
    """Return the folder of a split, which may not exist."""
    names = [os.path.join(root, name) for name in _FOLDERS[split]]
    return next((name for name in names if os.path.isdir(name)), names[-1])


def list_folders(root: str, split: str, variant: str) -> Listing:
    """List the official layout: split/class/class_number/class_number_i_rgb.jpg.

    Args:
        root: Folder of the splits.
        split: 'train', 'val' or 'test'.
        variant: 'rgb' or 'msrgb'.

    Raises:
        NoSamplesError: If there is no such image.
    """
    base = split_folder(root, split)
    image_end, json_end = f'_{variant}.jpg', f'_{variant}.json'
    rows: list[tuple[str, str, str, bool]] = []
    problems: list[tuple[str, str]] = []
    for category in _folders(base):
        for location in _folders(os.path.join(base, category)):
            place = posixpath.join(category, location)
            names = names_in(os.path.join(base, place))
            images = {n[:-4] for n in names if n.endswith(image_end)}
            texts = {n[:-5] for n in names if n.endswith(json_end)}
            if category not in CLASS_TO_IDX:
                problems += [(f'{place}/{n}.jpg', UNKNOWN) for n in sorted(images)]
                continue
            problems += [(f'{place}/{n}.jpg', ABSENT) for n in sorted(texts - images)]
            rows += [
                (f'{place}/{n}.jpg', category, place, n in texts)
                for n in sorted(images)
            ]
    if not rows:
        raise NoSamplesError(
            f'no fMoW image found in {base}: *root* must hold {split}/<class>/'
            f'<class>_<number>/*{image_end} as the official release has, or pass *csv*'
            f' or download=True'
        )
    frame = pd.DataFrame(rows, columns=['path', 'category', 'location', 'json'])
    frame['label'] = frame.pop('category').map(CLASS_TO_IDX)
    frame['timestamp'] = ''
    absent = sum(problem == ABSENT for _, problem in problems)
    return Listing(base, frame, problems, len(rows) + absent)


def list_csv(csv: str) -> Listing:
    """List a file such as SatMAE's train_62classes.csv.

    The columns are the label (a number in alphabetical order, or a class name), the
    path and, optionally, the ISO time. Relative paths start at the folder of the file.
    If a folder in the path has the name of a class, it decides the label.

    Raises:
        NoSamplesError: If the file does not exist, or none of its images does.
        ValueError: If it lacks columns or holds other values.
    """
    if not os.path.isfile(csv):
        raise NoSamplesError(f'*csv* is {csv}, which is not a file')
    table = read_csv(csv)
    if table.num_columns < 2:
        raise ValueError(
            f'{csv} has the columns {table.column_names}: expected label, path and'
            f' time, in this order'
        )
    base = os.path.dirname(os.path.abspath(csv))
    frame = pd.DataFrame({'label': _labels(csv, table), 'path': _paths(csv, table)})
    frame['timestamp'] = (
        table.column(2).cast(pa.string()).fill_null('').to_pandas()
        if table.num_columns > 2
        else ''
    )
    frame['exists'], frame['json'] = look_up(base, frame['path'])
    problems = [(path, ABSENT) for path in frame['path'][~frame['exists']]]
    if len(problems) == len(frame):
        raise NoSamplesError(
            f'none of the {len(frame)} images of {csv} exists, the first being'
            f' {os.path.join(base, frame["path"].iloc[0]) if len(frame) else "none"}:'
            f' move the images to these paths, or the CSV file to the folder above them'
        )
    listed = len(frame)
    frame = frame[frame.pop('exists')].reset_index(drop=True)
    parts = frame['path'].str.split('/')
    named = parts.map(lambda names: next((n for n in names if n in CLASS_TO_IDX), ''))
    truth = named.map(CLASS_TO_IDX).fillna(frame['label']).astype('int64')
    problems += [(path, RELABELLED) for path in frame['path'][truth != frame['label']]]
    frame['label'] = truth
    frame['location'] = _locations(frame['path'])
    return Listing(base, frame, problems, listed)


def _labels(csv: str, table: pa.Table) -> pd.Series:
    column = table.column(0)
    if pa.types.is_string(column.type):
        labels = column.to_pandas().map(CLASS_TO_IDX)
        wrong = labels.isna()
    elif pa.types.is_integer(column.type):
        labels = column.to_pandas()
        wrong = ~labels.between(0, len(CLASSES) - 1)
    else:
        raise ValueError(
            f'column {table.column_names[0]!r} of {csv} holds {column.type} values:'
            f' expected labels from 0 to {len(CLASSES) - 1}, or class names'
        )
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise ValueError(
            f'row {row + 1} of {csv} has the label {column[row].as_py()!r}: expected'
            f' a number from 0 to {len(CLASSES) - 1}, or a class name'
        )
    return labels.astype('int64')


def _paths(csv: str, table: pa.Table) -> pd.Series:
    column = table.column(1)
    if not pa.types.is_string(column.type) or column.null_count:
        raise ValueError(
            f'column {table.column_names[1]!r} of {csv} must hold a path in every row,'
            f' not {column.type}: expected label, path and time, in this order'
        )
    return column.to_pandas().str.replace('\\', '/')


def _locations(paths: pd.Series) -> pd.Series:
    """Return class and number of the place, from the folder or the file name."""
    pieces = paths.str.rpartition('/')
    folder = pieces[0].where(pieces[0].str.contains(r'[^/]_\d+$'))
    name = pieces[2].str.extract(r'^(.+?_\d+)_\d+', expand=False)
    return folder.fillna(name).fillna(paths)


def _folders(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and e.name[0] != '.')
