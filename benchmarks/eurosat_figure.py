"""Draw docs/results/eurosat_steps.png and eurosat_labels.png from measurements.

Usage: python benchmarks/eurosat_figure.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from eurosat_downstream import read

ROOT = Path(__file__).parent.parent
LINES = ROOT / 'benchmarks' / 'results' / 'study'
FOLDER = ROOT / 'docs' / 'results'
GREY, BLUE = '#9aa0a6', '#1a56db'
plt.rcParams |= {'font.size': 12, 'axes.titlesize': 13, 'figure.figsize': (5.4, 4)}
plt.rcParams |= {'axes.spines.top': False, 'axes.spines.right': False}


def draw_steps() -> None:
    """Draw the accuracy while the model adapts, mean and range over seeds."""
    figure, axes = plt.subplots(layout='constrained')
    of_step: dict[int, list[float]] = {}
    for row in read(LINES / 'study.jsonl'):
        if row['run'] == 'short':
            of_step.setdefault(row['step'], []).append(100 * row['knn'])
    steps = [step for step in sorted(of_step) if len(of_step[step]) == len(of_step[0])]
    values = [float(np.mean(of_step[step])) for step in steps]
    axes.axhline(values[0], color=GREY, linestyle='--')
    axes.text(steps[-1], values[0] + 0.5, 'base model', color='#5f6368', ha='right')
    ranges = [[pick(of_step[step]) for step in steps] for pick in (min, max)]
    axes.fill_between(steps, *ranges, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(steps, values, color=BLUE, marker='o', linewidth=2.5)
    for place, below in ((0, -18), (-1, 11)):
        axes.annotate(
            f'{values[place]:.1f}',
            (steps[place], values[place]),
            (0, below),
            textcoords='offset points',
            ha='center',
        )
    axes.set_ylim(66, 94)
    axes.set_xticks(range(0, 401, 100))
    axes.set_xlabel('optimizer steps of 64 images, without labels')
    axes.set_ylabel('accuracy, %')
    axes.set_title('Nearest neighbours while adapting\n(EuroSAT, 64 px, validation)')
    figure.savefig(FOLDER / 'eurosat_steps.png', dpi=130)


def draw_labels() -> None:
    """Draw the accuracy of a linear probe by share of labels, for base and delta."""
    figure, axes = plt.subplots(layout='constrained')
    probes = [r for r in read(LINES / 'downstream_64.jsonl') if r['method'] == 'probe']
    shares = (0.01, 0.1, 1.0)
    for side, model, name, colour in (
        (-0.19, 'base', 'base model', GREY),
        (0.19, 'delta', 'base model + delta', BLUE),
    ):
        found = [
            [
                100 * run['metrics']['test_held_out']
                for run in probes
                if (run['share'], run['model']) == (share, model)
            ]
            for share in shares
        ]
        bars = axes.bar(
            np.arange(3) + side,
            [np.mean(each) for each in found],
            0.36,
            yerr=[np.std(each, ddof=1) for each in found],
            color=colour,
            label=name,
            error_kw={'ecolor': '#444', 'capsize': 3},
        )
        axes.bar_label(bars, fmt='%.1f', padding=3)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xticks(range(3), ['1 %', '10 %', '100 %'])
    axes.set_xlabel('share of the labels for the probe')
    axes.set_ylabel('accuracy, %')
    axes.set_title('Linear probe afterwards\n(EuroSAT, 64 px, test, 3 seeds)')
    axes.legend(loc='upper left', frameon=False, ncols=2)
    figure.savefig(FOLDER / 'eurosat_labels.png', dpi=130)


if __name__ == '__main__':
    draw_steps()
    draw_labels()
