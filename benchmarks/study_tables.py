"""Tables and pictures of the study, from its lines.

    python benchmarks/study_tables.py --lines outputs/study --picture study.png
    python benchmarks/study_tables.py --lines benchmarks/results/study \
        --picture docs/results/study.png --pages docs/results/study.md docs/quality.md

The folder has `study.jsonl` and, where they were run, `test.jsonl` and others of
`study_test_split.py`, `mae.jsonl` of `study_mae.py` and `downstream_64.jsonl` and
the like of `eurosat_downstream.py`. `first_look.jsonl` has checkpoints of earlier
settings, which count in the correlations. With --pages, tables below a comment such as
`<!-- table: gains -->` are replaced by those of the lines, instead of being printed.
"""

import argparse
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import eurosat_downstream
import numpy as np
import study_mae
from eurosat_downstream import read
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr
from study_contenders import (
    ABLATION,
    CONTENDERS,
    ELSEWHERE,
    IDEAS,
    IMAGES,
    LARGER,
    OBJECTIVES,
    OTHERS,
    RATES,
    TIME,
    WIDER,
    Contender,
)

type Row = dict[str, Any]

MEASURES = (
    *('rankme', 'lidar', 'patch_rank', 'alignment', 'uniformity', 'variance_8'),
    *('neighbours', 'retrieval'),
)
LESS_IS_BETTER = ('alignment', 'uniformity', 'variance_8')
#: What the names of earlier runs begin with.
FIRST = 'first look: '
#: Files of judged runs, and the run that others are compared with.
AGAINST = {
    'test': 'full',
    'rsscn7': 'full',
    'test_128': '128 px, full',
    'test_dinov2': 'DINOv2 ViT-S, full, a quarter of the rate',
    'rsscn7_dinov2': 'DINOv2 ViT-S, full, a quarter of the rate',
}
#: Resamples of the test images.
_RESAMPLES = 10_000


def rows(path: Path) -> list[Row]:
    """Return the last line of each run, seed and step."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in read(path):
        found[row['run'], row['seed'], row.get('step')] = row
    return [*found.values()]


def finished(lines: list[Row]) -> Iterator[tuple[str, list[list[Row]]]]:
    """Yield each contender with the lines of its complete runs, seed by seed."""
    for name, (steps, *_) in CONTENDERS.items():
        mine = [row for row in lines if row['run'] == name]
        seeds = sorted({row['seed'] for row in mine})
        runs = [[row for row in mine if row['seed'] == seed] for seed in seeds]
        runs = [run for run in runs if run[-1]['step'] >= steps]
        if runs:
            yield name, runs


def spread(values: list[float]) -> str:
    """Return mean and standard deviation of accuracies."""
    if len(values) == 1:
        return f'{values[0]:.4f}'
    return f'{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}'


def gains(lines: list[Row], group: Mapping[str, Contender] = TIME) -> str:
    """Return how many images a gain takes, and what it comes to, as Markdown.

    Images are those of each seed; accuracy is mean and standard deviation over seeds.
    What differs in time is compared with *full* by its last accuracy, seed by seed.
    """
    # Some were measured more often, and would seem faster.
    found = {
        name: [
            [row for row in run if row['step'] in (0, *where.measured, where.steps)]
            for run in runs
        ]
        for name, runs in finished(lines)
        for where in (CONTENDERS[name],)
    }
    full = {run[-1]['seed']: run[-1]['knn'] for run in found.get('full', ())}
    names = ['run', 'seeds', 'trained', 'start', '+5 points', '+10 points', 'best']
    names += ['end', *(['end over *full*'] if group is TIME else [])]
    names += ['lowest', 'TFLOP', 'minutes']
    table = [f'| {" | ".join(names)} |', '|' + '---|' * len(names)]
    for name, runs in found.items():
        if name not in group:
            continue
        # Fewer images are others with each seed, and so is the bank.
        starts = [run[0]['knn'] for run in runs]
        lowest = 100 * min(row['knn'] - run[0]['knn'] for run in runs for row in run)
        start = spread(starts if len(set(starts)) > 1 else starts[:1])
        cells = [name, str(len(runs)), _millions(runs), start]
        cells += [
            ', '.join(_images_until(run, run[0]['knn'] + gain) for run in runs)
            for gain in (0.05, 0.1)
        ]
        cells.append(spread([max(row['knn'] for row in run) for run in runs]))
        cells.append(spread([run[-1]['knn'] for run in runs]))
        if group is TIME:
            gaps = (
                f'{100 * (run[-1]["knn"] - full[run[-1]["seed"]]):+.1f}'
                for run in runs
                if name != 'full' and run[-1]['seed'] in full
            )
            cells.append(', '.join(gaps))
        cells += [f'{lowest:+.1f}', f'{runs[0][-1]["tflop"]:.0f}', _minutes(runs)]
        table.append(f'| {" | ".join(cells)} |')
    return '\n'.join(table)


def _images_until(run: list[Row], wanted: float) -> str:
    reached = (str(r['images']) for r in run if r['knn'] >= wanted)
    return next(reached, '-')


def _minutes(runs: list[list[Row]]) -> str:
    return f'{statistics.mean(run[-1]["cpu_seconds"] for run in runs) / 60:.1f}'


def _millions(runs: list[list[Row]]) -> str:
    return f'{runs[0][0]["trained"] / 1e6:.2f} M'


def each_run(lines: list[Row]) -> str:
    """Return one row for each run and seed, finished or not, as Markdown."""
    table = ['| run | seed | +5 points | +10 points | best | steps |', '|' + '---|' * 6]
    for name, seed in dict.fromkeys((row['run'], row['seed']) for row in lines):
        run = [row for row in lines if (row['run'], row['seed']) == (name, seed)]
        start, best = run[0]['knn'], max(run, key=lambda row: row['knn'])
        after = [_images_until(run, start + gain) for gain in (0.05, 0.1)]
        table.append(
            f'| {name.removeprefix(FIRST)} | {seed} | {" | ".join(after)} |'
            f' {best["knn"]:.4f} (step {best["step"]}) | {run[-1]["step"]} |'
        )
    return '\n'.join(table)


def ablation(lines: list[Row], group: Mapping[str, Any] = ABLATION) -> str:
    """Return the accuracy at the end of *short run* and of changes of it, as Markdown.

    The difference is from *short run* of the same seeds, in points. Its mean has two
    standard errors, from the standard deviation over seeds that all rows of the
    ablation have in common: three seeds are too few for one of their own.
    """
    found = dict(finished(lines))
    start = {run[-1]['seed']: run[-1]['knn'] for run in found.get('short run', ())}
    gaps = {
        name: [
            100 * (run[-1]['knn'] - start[run[-1]['seed']])
            for run in runs
            if run[-1]['seed'] in start
        ]
        for name, runs in found.items()
    }
    changes = [name for name in gaps if name in ABLATION and name != 'short run']
    deviation = pooled_deviation([gaps[name] for name in changes])
    table = [
        '| trained | parameters | seeds | 10-NN | from *short run* | mean | minutes |',
        '|' + '---|' * 7,
    ]
    for name, runs in found.items():
        if name != 'short run' and name not in group:
            continue
        mean = ''
        if name != 'short run' and gaps[name] and deviation is not None:
            error = 2 * deviation / math.sqrt(len(gaps[name]))
            mean = f'{statistics.mean(gaps[name]):+.1f} ± {error:.1f}'
        table.append(
            f'| {name} | {_millions(runs)} | {len(runs)} |'
            f' {spread([run[-1]["knn"] for run in runs])} |'
            f' {", ".join(f"{gap:+.1f}" for gap in gaps[name])} | {mean} |'
            f' {_minutes(runs)} |'
        )
    return '\n'.join(table)


def pooled_deviation(samples: list[list[float]]) -> float | None:
    """Return the standard deviation that samples have in common, each about its mean.

    None if no sample has two values.
    """
    several = [sample for sample in samples if len(sample) > 1]
    if not several:
        return None
    freedom = [len(sample) - 1 for sample in several]
    return math.sqrt(
        sum(
            n * statistics.variance(each)
            for n, each in zip(freedom, several, strict=True)
        )
        / sum(freedom)
    )


def on_test_split(lines: list[Row], against: str) -> str:
    """Return accuracy on the test split, with intervals over images, as Markdown.

    Intervals are those of 95 % from resampled test images, for the mean over seeds;
    differences are of the same images.
    """
    of_run: dict[str, list[Row]] = {}
    for row in lines:
        of_run.setdefault(row['run'], []).append(row)
    known = ('base', *TIME, *IMAGES, *ELSEWHERE, *OTHERS)
    order = [name for name in known if name in of_run]
    order += [name for name in of_run if name not in known]
    mean = {name: np.mean([right(row) for row in of_run[name]], 0) for name in order}
    size = lines[0]['images']
    drawn = np.random.default_rng(0).integers(0, size, (_RESAMPLES, size))

    def gap(name: str, other: str) -> str:
        if name == other or other not in mean:
            return ''
        points = 100 * (mean[name] - mean[other])
        low, high = np.quantile(points[drawn].mean(1), (0.025, 0.975))
        return f'{points.mean():+.1f} ({low:+.1f} to {high:+.1f})'

    table = [
        f'| run | seeds | 10-NN | over the base, points | over *{against}*, points |',
        '|' + '---|' * 5,
    ]
    for name in order:
        accuracy = spread([row['accuracy'] for row in of_run[name]])
        table.append(
            f'| {name} | {len(of_run[name])} | {accuracy} | {gap(name, "base")} |'
            f' {gap(name, against)} |'
        )
    return '\n'.join(table)


def on_halves(lines: list[Row]) -> str:
    """Return test accuracy on the first and the last half of the classes, as Markdown.

    The test images lie class by class, with as many of each.
    """
    table = ['| run | seeds | classes 1 to 5 | classes 6 to 10 |', '|' + '---|' * 4]
    for name in ('base', 'half of the classes', 'short'):
        runs = [right(row) for row in lines if row['run'] == name]
        if runs:
            parts = [[run.reshape(2, -1)[i].mean() for run in runs] for i in (0, 1)]
            accuracies = ' | '.join(spread([*map(float, part)]) for part in parts)
            table.append(f'| {name} | {len(runs)} | {accuracies} |')
    return '\n'.join(table)


def right(row: Row) -> NDArray[np.uint8]:
    """Return 1 for each image that was classified correctly, else 0."""
    packed = np.frombuffer(bytes.fromhex(row['right']), np.uint8)
    return np.unpackbits(packed, count=row['images'])


def correlations(lines: list[Row]) -> str:
    """Return how each measure orders checkpoints, beside 10-NN, as Markdown.

    Spearman's rank correlation with accuracy: over all checkpoints of the ViT-Ti at 64
    pixels after the start whose accuracies have the same bank, over the last ones of
    all runs, and within each run of at least 5 (mean, least and most). What is lost is
    accuracy, in points: that of a run's best checkpoint, less that of the one with the
    best value, on average over these runs, and at most. The last row takes the last
    checkpoint, whatever was measured.
    """
    groups = IMAGES | ELSEWHERE | RATES | OBJECTIVES | OTHERS
    others = {*groups, f'{FIRST}dinov2 small'}
    after = [row for row in lines if row['step'] and row['run'] not in others]
    count = Counter((row['run'], row['seed']) for row in after)
    runs = [run for run in count if count[run] >= 5]
    of_run = [[r for r in after if (r['run'], r['seed']) == run] for run in runs]

    def spearman(rows: list[Row], name: str) -> float:
        pairs = [[row[name] for row in rows], [row['knn'] for row in rows]]
        return float(spearmanr(*pairs).statistic)

    def lost(rows: list[Row], name: str) -> float:
        sign = -1 if name in LESS_IS_BETTER else 1
        chosen = max(rows, key=lambda row: sign * row[name])
        return 100 * (max(row['knn'] for row in rows) - chosen['knn'])

    def in_runs(name: str) -> str:
        within = [spearman(rows, name) for rows in of_run]
        losses = [lost(rows, name) for rows in of_run]
        return (
            f'{statistics.mean(within):+.2f} | {min(within):+.2f} | {max(within):+.2f}'
            f' | {statistics.mean(losses):.1f} | {max(losses):.1f}'
        )

    within_runs = f'within a run: mean of {len(runs)}'
    ends = [
        [row for row in after if (row['run'], row['seed']) == run][-1] for run in count
    ]
    many = f'all {len(after)} checkpoints | ends of {len(ends)} runs | {within_runs}'
    table = [f'| measure | {many} | least | most | lost | at most |', '|' + '---|' * 8]
    for name in MEASURES:
        if not all(name in row for row in after):
            continue
        of_all = f'{spearman(after, name):+.2f} | {spearman(ends, name):+.2f}'
        table.append(f'| `{name}` | {of_all} | {in_runs(name)} |')
    table.append(f'| the last one | | | {in_runs("step")} |')
    return '\n'.join(table)


def picture(lines: list[Row], path: Path) -> None:
    """Draw accuracy against images seen, and against each measure."""
    found = [(name, runs) for name, runs in finished(lines) if name in TIME]
    figure = Figure(figsize=(13, 9), layout='constrained')
    grid = figure.add_gridspec(3, 4, height_ratios=(1.6, 1, 1))
    large = figure.add_subplot(grid[0, :])
    small = [figure.add_subplot(grid[1 + i // 4, i % 4]) for i in range(8)]
    for axes, measure in zip([large, *small], ('images', *MEASURES), strict=True):
        for number, (name, runs) in enumerate(found):
            for seed, run in enumerate(runs):
                x, y = ([row[key] for row in run] for key in (measure, 'knn'))
                label = None if seed else name
                color = f'C{number}'
                axes.plot(x, y, 'o-', ms=3, lw=0.8, color=color, label=label)
        axes.set_xlabel(measure)
        axes.grid(alpha=0.3)
    start = found[0][1][0][0]['knn']
    for gain in (0.05, 0.1):
        large.axhline(start + gain, color='grey', lw=0.8, ls=':')
    large.set_ylabel('10-NN accuracy')
    large.legend(loc='upper left', bbox_to_anchor=(1, 1))
    large.set_xlim(left=0)
    figure.savefig(path, dpi=110)


def tables(folder: Path) -> dict[str, str]:
    """Return all tables for which the folder has lines, by name."""
    lines = rows(folder / 'study.jsonl')
    earlier = rows(folder / 'first_look.jsonl')
    found = {
        'gains': gains(lines),
        'images': gains(lines, IMAGES),
        'larger': gains(lines, LARGER),
        'wider': gains(lines, WIDER),
        'rates': gains(lines, RATES),
        'objectives': gains(lines, OBJECTIVES),
        'others': gains(lines, OTHERS),
        'ablation': ablation(lines),
        'ideas': ablation(lines, IDEAS),
        'first look': each_run(earlier),
        'correlations': correlations(lines + earlier),
    }
    for name, against in AGAINST.items():
        if judged := rows(folder / f'{name}.jsonl'):
            found[name.replace('_', ' ')] = on_test_split(judged, against)
            if name == 'test':
                found['halves'] = on_halves(judged)
    if (folder / 'mae.jsonl').exists():
        found['mae'] = study_mae.table(folder / 'mae.jsonl')
    for path in sorted(folder.glob('downstream_*.jsonl')):
        found[path.stem.replace('_', ' ')] = eurosat_downstream.table(read(path))
    return found


def refreshed(page: str, found: Mapping[str, str]) -> str:
    """Return a page with the tables below comments such as `<!-- table: gains -->`.

    Raises:
        KeyError: If there is no such table.
    """

    def replace(match: re.Match[str]) -> str:
        return f'{match[1]}\n\n{found[match[2]]}\n\n'

    whole = re.sub(r'(<!-- table: (.+?) -->)\n+(?:\|.*\n)*\n*', replace, page)
    return f'{whole.rstrip()}\n'


def main() -> None:
    """Print the tables, or write them into pages."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--lines', type=Path, required=True, help='folder of the lines')
    parser.add_argument('--picture', type=Path)
    parser.add_argument('--pages', type=Path, nargs='+', default=[])
    options = parser.parse_args()
    found = tables(options.lines)
    for page in options.pages:
        page.write_text(refreshed(page.read_text(), found))
    if not options.pages:
        for name, table in found.items():
            print(f'{name}\n\n{table}\n')
    if options.picture:
        picture(rows(options.lines / 'study.jsonl'), options.picture)


if __name__ == '__main__':
    main()
