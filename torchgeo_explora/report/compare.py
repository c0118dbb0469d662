"""A table and curves of several runs side by side."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchgeo_explora.report import page as parts
from torchgeo_explora.report.charts import line_chart, line_style
from torchgeo_explora.report.page import Page, Section
from torchgeo_explora.report.run import Run, read_run
from torchgeo_explora.report.run_page import MEASURES, notation
from torchgeo_explora.writing import replacing

#: Settings that say where a run is, not what it is.
_PLACES = ('default_root_dir', 'dirpath', 'save_dir', 'ckpt_path', 'folder')
_DEEPEST = 8
_MOST_CURVES = 24


def compare_runs(
    folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """Write a page and a table of several runs.

    The table has the settings that differ, the measures before, after and at their
    best, and the cost; the page also has the curves. Runs may still be going.

    Args:
        folders: Folders of the runs.
        output: The page, `*.html`; the table goes beside it as `*.csv`.

    Returns:
        The rows of the table: what is known about each run, by name.

    Raises:
        NotADirectoryError: If there is no such folder.
        OSError: If a file cannot be written.
        ValueError: If a folder has none of the files that a run leaves, or *output* is
            not a page.
    """
    output = Path(output)
    if output.suffix != '.html':
        raise ValueError(
            f'*output* is {output}: give a name that ends in .html; the table goes'
            ' beside it'
        )
    runs = [read_run(folder) for folder in folders]
    names = _names(runs)
    differing = differences([run.config for run in runs])
    rows = [
        {'run': name, **setting, **_results(run)}
        for name, run, setting in zip(names, runs, differing, strict=True)
    ]
    columns = [*dict.fromkeys(column for row in rows for column in row)]
    with (
        replacing(output.with_suffix('.csv')) as part,
        part.open('w', newline='') as file,
    ):
        writer = csv.DictWriter(file, columns, restval='')
        writer.writeheader()
        writer.writerows({k: _safe(v) for k, v in row.items()} for row in rows)
    _page(names, runs, rows, differing).write(output)
    return rows


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the settings that are not the same in all configurations, as text.

    Args:
        configs: One for each run; {} if none is known.
    """
    flat = [dict(_flat(config)) for config in configs]
    names = dict.fromkeys(name for each in flat for name in each)
    return [
        {
            name: each.get(name, '')
            for name in names
            if len({other.get(name) for other in flat}) > 1
        }
        for each in flat
    ]


def _flat(value: Any, name: str = '', depth: int = 0) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value and depth < _DEEPEST:
        for key, inner in value.items():
            if str(key) not in _PLACES:
                yield from _flat(
                    inner, f'{name}.{key}' if name else str(key), depth + 1
                )
    elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        for index, inner in enumerate(value[:20]):
            yield from _flat(inner, f'{name}[{index}]', depth + 1)
    elif name:
        yield name.replace('.init_args', ''), parts.short(value)


def _results(run: Run) -> dict[str, Any]:
    """Return the results of a run, by name."""
    found: dict[str, Any] = {'notation': notation(run)}
    if run.pretraining:
        found['finished'] = 'yes' if run.finished else 'no'
    shown = [name for name in MEASURES if run.curve(name)]
    for name in shown:
        curve = run.curve(name)
        values = [*curve.values()]
        found[f'{name} before'] = values[0]
        found[f'{name} after'] = values[-1]
        if name == 'knn':
            found['knn best'] = max(values)
            found['step of the best'] = max(curve, key=lambda step: curve[step])
    for name in sorted(run.curves):
        if name.startswith(('test_', 'test/', 'val_', 'val/')) and not run.pretraining:
            found[name] = [*run.curve(name).values()][-1]
    found['steps'] = run.steps
    for name in ('images', 'tflop', 'wall_seconds', 'device_hours', 'energy_kwh'):
        found[name] = run.cost.get(name)
    found['kg_co2e'] = run.cost.get('kg_co2e')
    return {name: value for name, value in found.items() if value not in (None, '')}


def _page(
    names: Sequence[str],
    runs: Sequence[Run],
    rows: Sequence[Mapping[str, Any]],
    differing: Sequence[Mapping[str, str]],
) -> Page:
    settings = [*dict.fromkeys(name for each in differing for name in each)]
    results = [
        *dict.fromkeys(
            name
            for row in rows
            for name in row
            if name not in settings and name != 'run'
        )
    ]
    # In the CSV file, each run is a row; here, where screens are narrow, a column.
    found = [
        parts.table(
            'Results of each run',
            [[name, *(row.get(name) for row in rows)] for name in results],
            ['', *names],
        )
    ]
    different = (
        parts.table(
            'Settings that differ',
            [[name, *(each[name] for each in differing)] for name in settings],
            ['', *names],
        )
        if settings
        else parts.text('No settings differ in the configurations that were found.')
    )
    first = [*MEASURES, 'loss']
    logged = sorted({name for run in runs for name in run.curves})
    curves = [
        name
        for name in dict.fromkeys([*first, *logged])
        if name != 'epoch' and any(len(run.curve(name)) > 1 for run in runs)
    ]
    count = sum(name in first for name in curves)
    drawn = [
        line_chart(
            MEASURES.get(name, name), [run.curve(name) for run in runs], f'c{index}'
        )
        for index, name in enumerate(curves[:_MOST_CURVES])
    ]
    legend = [(name, *line_style(index)) for index, name in enumerate(names)]
    pictures = [parts.charts(drawn[:count], legend)] if drawn[:count] else []
    if drawn[count:]:
        pictures.append(parts.charts(drawn[count:], legend, 'More curves'))
    sections = [
        Section('results', 'Results', found),
        Section('settings', 'Settings', [different]),
        Section('curves', 'Curves', pictures),
    ]
    return Page(
        title=f'{len(runs)} runs compared',
        subtitle=', '.join(names),
        notes=[
            f'{name}: {problem}'
            for name, run in zip(names, runs, strict=True)
            for problem in run.problems
        ],
        sections=[section for section in sections if section.parts],
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: its folder's, with its parent's if needed."""
    names = [run.name for run in runs]
    return [
        name
        if names.count(name) == 1
        else parts.short(f'{run.folder.resolve().parent.name}/{name}')
        for name, run in zip(names, runs, strict=True)
    ]


def _safe(value: Any) -> Any:
    """Return a value that no spreadsheet will take for a formula."""
    if isinstance(value, str) and value[:1] in tuple('=+-@\t\r') and value != '-':
        return f"'{value}"
    return value
