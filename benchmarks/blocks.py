r"""What each block knows before and after adapting, next to the paper's figures.

    python benchmarks/blocks.py --picture docs/results/analysis_blocks.png

It prints the table of docs/analysis.md, and draws its picture, from the lines of
`benchmarks/results/blocks.csv`. Those of the ViT-Ti and of the ViT-S are from
`blocks.csv` and `changes.csv` of `explora analyze` (docs/analysis.md has the commands);
those of the ViT-L were read off the vector graphics of Khanna et al., *ExPLoRA*.
"""

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

LINES = Path(__file__).parent / 'results' / 'blocks.csv'
MEASURES = {
    'eigenvalue_mean': 'mean principal eigenvalue',
    'position_accuracy': 'patch to position',
    'class_accuracy': 'patch to class',
}
type Row = dict[str, str]


def rows() -> list[Row]:
    """Return the lines."""
    with LINES.open(newline='') as file:
        return [*csv.DictReader(file)]


def values(lines: Iterable[Row], base: str, weights: str, name: str) -> list[float]:
    """Return a measure of a model by block."""
    chosen = [r for r in lines if (r['base'], r['weights']) == (base, weights)]
    return [float(row[name]) for row in chosen]


def table(lines: list[Row]) -> str:
    """Return what the first, the highest and the last block have, as Markdown."""
    bases = [*dict.fromkeys(row['base'] for row in lines)]
    text = [f'| base → adapted | {" | ".join(bases)} |', '|' + '---|' * 4]
    for name, words in MEASURES.items():
        for place in ('block 1', 'highest', 'last block'):
            cells = []
            for base in bases:
                two = [values(lines, base, w, name) for w in ('base', 'adapted')]
                if place == 'highest':
                    shown = [f'{max(v):.3g} ({v.index(max(v)) + 1})' for v in two]
                else:
                    shown = [f'{v[0 if place == "block 1" else -1]:.3g}' for v in two]
                cells.append(' → '.join(shown))
            text.append(f'| {words}, {place} | {" | ".join(cells)} |')
    return '\n'.join(text)


def picture(lines: list[Row]) -> Figure:
    """Draw the measures of the three models against the depth, from 0 to 1."""
    bases = [*dict.fromkeys(row['base'] for row in lines)]
    figure = Figure(figsize=(11, 6.6), layout='constrained')
    grid = figure.subplots(len(MEASURES), len(bases), sharex=True)
    for line, (name, words) in zip(grid, MEASURES.items(), strict=True):
        for axes, base in zip(line, bases, strict=True):
            for weights, marker in (('base', 'o'), ('adapted', '^')):
                curve = values(lines, base, weights, name)
                depth = [(i + 1) / len(curve) for i in range(len(curve))]
                axes.plot(depth, curve, marker=marker, markersize=4, label=weights)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        line[0].set_ylabel(words)
    for axes, base in zip(grid[0], bases, strict=True):
        axes.set_title(base)
    for axes in grid[-1]:
        axes.set_xlabel('depth (1 is the last block)')
    grid[0][0].legend()
    return figure


def main() -> None:
    """Print the table, and draw the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--picture', type=Path)
    options = parser.parse_args()
    lines = rows()
    print(table(lines))
    if options.picture:
        picture(lines).savefig(options.picture, dpi=100)


if __name__ == '__main__':
    main()
