"""Problems in the files of a data set: counted, reported, refused if too many."""

import csv
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from torchgeo_explora.terminal import printable
from torchgeo_explora.writing import replacing

#: The problem that every list of files can have.
ABSENT = 'absent images'


def write_report(problems: Sequence[tuple[str, str]], path: str) -> str | None:
    """Write a CSV file of problems with the columns path and problem.

    Args:
        problems: (path, problem) pairs; if there are none, an old report is removed.
        path: The file to write.

    Returns:
        The file, or None if there is nothing to report or it cannot be written.
    """
    try:
        if not problems:
            if os.path.exists(path):
                os.remove(path)
            return None
        with (
            replacing(path) as part,
            part.open('w', newline='', encoding='utf-8') as file,
        ):
            writer = csv.writer(file)
            writer.writerow(('path', 'problem'))
            writer.writerows(problems)
    except OSError:
        return None
    return path


def tally(problems: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Count each problem."""
    return dict(Counter(problem for _, problem in problems))


def with_notes(
    table: pa.Table,
    problems: Sequence[tuple[str, str]],
    listed: int,
    path: str,
    **others: Any,
) -> pa.Table:
    """Return a table with notes on the problems of its sources, and write a report.

    Args:
        table: The samples that can be used.
        problems: (path, problem) pairs.
        listed: Number of samples that the sources list.
        path: File of the table; the report goes beside it.
        **others: Further notes, as JSON values.

    Returns:
        The table with the notes `counts` and `examples` (by problem), `listed`,
        `report` (a file or None) and the others.
    """
    notes = {
        'listed': listed,
        'counts': tally(problems),
        'examples': {problem: name for name, problem in reversed(problems)},
        'report': write_report(problems, f'{path}.report.csv'),
        **others,
    }
    return table.replace_schema_metadata(
        {name: json.dumps(value) for name, value in notes.items()}
    )


def check_missing(
    counts: dict[str, int],
    total: int,
    max_missing: float,
    what: str,
    example: str | None = None,
    report: str | None = None,
) -> None:
    """Warn of missing samples, or refuse a data set that lacks too many.

    Args:
        counts: Number of missing samples by problem.
        total: Number of samples that the data set lists.
        max_missing: Largest share that may be missing, in [0, 1].
        what: The data set in words.
        example: One of the files.
        report: File that lists all of them.

    Raises:
        ValueError: If *max_missing* is not in [0, 1].
        FileNotFoundError: If more are missing.
    """
    if not 0 <= max_missing <= 1:
        raise ValueError(f'*max_missing* must be in [0, 1], not {max_missing}')
    lost = sum(counts.values())
    if not lost:
        return
    listed = ', '.join(f'{count} {problem}' for problem, count in counts.items())
    text = f'{what} lists {total} samples, of which {lost} cannot be used ({listed})'
    if example:
        text += f', such as {printable(example)}'
    if report:
        text += f'; all are listed in {report}'
    if lost > max_missing * total:
        raise FileNotFoundError(
            f'{text}. More than max_missing={max_missing} of them: complete the data,'
            f' or pass a larger *max_missing*'
        )
    warnings.warn(f'{text}. They are left out.', stacklevel=4)


def warn_of_shared_places(places: dict[str, Iterable[str]], what: str) -> int:
    """Warn if splits share places: a test then measures places seen in training.

    Args:
        places: Name of the place of each sample, '' if unknown, by split.
        what: The data set in words.

    Returns:
        Number of places in more than one split.
    """
    sets = {split: set(names) - {''} for split, names in places.items()}
    shared: set[str] = set()
    pairs = []
    for number, split in enumerate(sets):
        for other in list(sets)[number + 1 :]:
            both = sets[split] & sets[other]
            shared |= both
            if both:
                pairs.append(f'{len(both)} in both {split!r} and {other!r}')
    if shared:
        warnings.warn(
            f'{what} has the same places in several splits ({"; ".join(pairs)}), such'
            f' as {min(shared)}: scores on them say nothing about new places',
            stacklevel=2,
        )
    return len(shared)
