"""Tables of samples: CSV files, and an index that is built once and then reopened."""

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from torchgeo_explora.datasets.tables.problems import check_missing
from torchgeo_explora.terminal import printable
from torchgeo_explora.writing import replacing


def read_csv(
    path: str,
    columns: Sequence[str] = (),
    types: Mapping[str, pa.DataType] | None = None,
    hint: str = '',
) -> pa.Table:
    """Read a CSV file.

    Args:
        path: The file.
        columns: Columns that it must have.
        types: Types of columns that must not be guessed.
        hint: What to do if it lacks columns.

    Raises:
        ValueError: If it is not a CSV file, or lacks columns.
    """
    options = pyarrow.csv.ConvertOptions(column_types=types)
    try:
        table = pyarrow.csv.read_csv(path, convert_options=options)
    except pa.ArrowInvalid as error:
        said = printable(error)
        raise ValueError(f'{path} cannot be read as a CSV file: {said}') from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ValueError(
            f'{path} lacks the columns {", ".join(missing)}: it has'
            f' {printable(", ".join(table.column_names))}{hint}'
        )
    return table


def whole_numbers(path: str, column: pd.Series) -> pd.Series:
    """Return a column of a CSV file as whole numbers.

    Args:
        path: The file, for errors.
        column: The column, with its name.

    Raises:
        ValueError: If a row holds something else.
    """
    numbers = pd.to_numeric(column, errors='coerce')
    wrong = (numbers % 1 != 0).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f'row {row + 1} of {path} has {str(column.iloc[row])!r} in the column'
            f' {column.name!r}: expected a whole number'
        )
    return numbers.astype('int64')


def parse_time(timestamp: str) -> tuple[int, int, int] | None:
    """Return (year - 2002, month - 1, hour), the code of SatMAE's temporal model.

    Args:
        timestamp: ISO time such as '2015-07-25T07:23:14Z'; fMoW writes seconds with or
            without fractions.

    Returns:
        The code, or None if the text is not a time.
    """
    try:
        time = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return time.year - 2002, time.month - 1, time.hour


def look_up(base: str, paths: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return which files exist, and which have a JSON file beside them.

    Args:
        base: Folder that the paths start at.
        paths: With forward slashes.
    """
    if not len(paths):
        return pd.Series(dtype=bool), pd.Series(dtype=bool)
    # Listing a folder once is much faster than asking for each of its files.
    pieces = paths.str.rpartition('/')
    folders = {
        folder: names_in(os.path.join(base, folder)) for folder in set(pieces[0])
    }
    stems = pieces[2].str.rpartition('.')[0]
    exists = [name in folders[f] for f, name in zip(pieces[0], pieces[2], strict=True)]
    texts = [f'{s}.json' in folders[f] for f, s in zip(pieces[0], stems, strict=True)]
    return pd.Series(exists, dtype=bool), pd.Series(texts, dtype=bool)


def names_in(folder: str) -> set[str]:
    """Return the names of the files in a folder, none if it does not exist."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def file_stamp(path: str) -> list[int]:
    """Return size and time of a file, which change with it; [] if there is none."""
    if not os.path.isfile(path):
        return []
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def index_path(folder: str, name: str, index_dir: str | None) -> str:
    """Return the path of the index of a data set.

    Args:
        folder: Folder of the data set.
        name: Name of the index.
        index_dir: Another folder for the index. Because several data sets can share it,
            the name of the file then depends on *folder*.
    """
    if index_dir is None:
        return os.path.join(folder, f'.{name}.arrow')
    text = os.path.abspath(folder).encode()
    digest = hashlib.blake2b(text, digest_size=4).hexdigest()
    return os.path.join(index_dir, f'.{name}_{digest}.arrow')


class TableFile:
    """An Arrow table in a file, memory-mapped.

    All processes of a machine share its memory, even for a million rows. The file
    appears only when it is complete, and ends with the SHA-256 of the rest, which is
    compared at the start (100 MB in about 0.1 s): Arrow trusts its files, and a damaged
    one could give wrong rows or crash the process. A table that is damaged, or was
    built from other sources, is built again.

    Args:
        path: The file. If it cannot be written, the table stays in memory.
        source: What the table depends on, such as names, sizes and times of its
            sources, as JSON values.
        build: Builds the table.

    Attributes:
        path: The file, None if it could not be written.
    """

    def __init__(
        self, path: str, source: dict[str, Any], build: Callable[[], pa.Table]
    ) -> None:
        """Open the file, or build the table and write it."""
        self.path: str | None = path
        self._table: pa.Table | None = None
        key = json.dumps(source, sort_keys=True).encode()
        found = None
        with contextlib.suppress(OSError, pa.ArrowInvalid):
            found = _open(path, check=True)
        if found is not None and (found.schema.metadata or {}).get(b'source') == key:
            self._table = found
            return
        built = build().combine_chunks()
        built = built.replace_schema_metadata(
            {**(built.schema.metadata or {}), b'source': key}
        )
        try:
            _write(built, path)
        except OSError as error:
            warnings.warn(
                f'cannot keep the index in {path} ({error}), so every start builds it'
                f' again: pass a writable folder as *index_dir*',
                stacklevel=2,
            )
            self.path, self._table = None, built

    @property
    def table(self) -> pa.Table:
        """The table."""
        if self._table is None:
            assert self.path is not None
            self._table = _open(self.path)
        return self._table

    def note(self, name: str) -> Any:
        """Return a value that is stored with the table, None if there is none."""
        raw = (self.table.schema.metadata or {}).get(name.encode())
        return None if raw is None else json.loads(raw)

    @contextlib.contextmanager
    def kept_if_accepted(self) -> Iterator[None]:
        """Remove the file if the block refuses it, so that the next start rebuilds it.

        Raises:
            FileNotFoundError: If the block raises it.
        """
        try:
            yield
        except FileNotFoundError:
            if self.path is not None:
                with contextlib.suppress(OSError):
                    os.remove(self.path)
            raise

    def check_missing(
        self, max_missing: float, what: str, losing: Iterable[str] | None = None
    ) -> None:
        """Warn of missing samples, or refuse the data set.

        Args:
            max_missing: Largest share of the samples that may be missing, in [0, 1].
            what: The data set in words.
            losing: Problems that cost a sample; all if None.

        Raises:
            FileNotFoundError: If more are missing.
        """
        counts, examples = self.note('counts'), self.note('examples')
        lost = {n: counts[n] for n in losing or counts if n in counts}
        example = next((examples[name] for name in lost), None)
        with self.kept_if_accepted():
            listed, report = self.note('listed'), self.note('report')
            check_missing(lost, listed, max_missing, what, example, report)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapped table: a spawned worker opens the file itself."""
        return {**self.__dict__, '_table': None if self.path else self._table}


# Bytes of a SHA-256.
_SEAL = 32


def _open(path: str, check: bool = False) -> pa.Table:
    """Return the table of a file, memory-mapped.

    Raises:
        pa.ArrowInvalid: If it is not a table, or if *check* is true and it is damaged.
    """
    with pa.memory_map(path) as source:
        buffer = source.read_buffer()
    content = buffer.slice(0, max(0, len(buffer) - _SEAL))
    if check:
        seal = buffer.slice(len(content)).to_pybytes()
        if hashlib.sha256(content).digest() != seal:
            raise pa.ArrowInvalid(f'{path} is damaged')
    return pa.ipc.open_file(content).read_all()


def _write(table: pa.Table, path: str) -> None:
    with replacing(path) as part:
        with (
            pa.OSFile(str(part), 'wb') as sink,
            pa.ipc.new_file(sink, table.schema) as file,
        ):
            file.write_table(table)
        with part.open('rb') as content:
            seal = hashlib.file_digest(content, 'sha256').digest()
        with part.open('ab') as end:
            end.write(seal)
