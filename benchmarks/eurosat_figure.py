"""Draw docs/results/eurosat_steps.png and eurosat_labels.png from what was measured.

Usage: python benchmarks/eurosat_figure.py
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parent.parent
RUNS = ROOT / 'benchmarks' / 'results' / 'eurosat_downstream.jsonl'
FOLDER = ROOT / 'docs' / 'results'
# Step and 10-NN accuracy on the validation split: docs/results/eurosat.md, D-ExPLoRA.
CURVE = {0: 0.795, 150: 0.837, 300: 0.861, 450: 0.864, 600: 0.867}
GREY, BLUE = '#9aa0a6', '#1a56db'
plt.rcParams |= {'font.size': 12, 'axes.titlesize': 13, 'figure.figsize': (5.4, 4)}
plt.rcParams |= {'axes.spines.top': False, 'axes.spines.right': False}


def draw_steps() -> None:
    """Accuracy while the model adapts."""
    figure, axes = plt.subplots(layout='constrained')
    values = [100 * value for value in CURVE.values()]
    axes.axhline(values[0], color=GREY, linestyle='--')
    axes.text(600, values[0] + 0.2, 'base model', color='#5f6368', ha='right')
    axes.plot(list(CURVE), values, color=BLUE, marker='o', linewidth=2.5)
    for place, below in ((0, -18), (-1, 9)):
        point = ([*CURVE][place], values[place])
        axes.annotate(
            f'{point[1]:.1f}',
            point,
            (0, below),
            textcoords='offset points',
            ha='center',
        )
    axes.set_ylim(78, 88.5)
    axes.set_xticks(list(CURVE))
    axes.set_xlabel('optimizer steps without labels')
    axes.set_ylabel('accuracy, %')
    axes.set_title('Nearest neighbours while adapting\n(EuroSAT, 128 px, validation)')
    figure.savefig(FOLDER / 'eurosat_steps.png', dpi=130)


def draw_labels() -> None:
    """Accuracy of a linear probe by the share of labels, base and delta."""
    figure, axes = plt.subplots(layout='constrained')
    runs = [json.loads(line) for line in RUNS.read_text().splitlines()]
    probes = [run for run in runs if run['method'] == 'probe']
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
