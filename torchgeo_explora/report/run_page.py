"""The page of one run."""

import csv
import os
import shlex
from itertools import islice
from pathlib import Path
from typing import Any

from torchgeo_explora.adapt import Adaptation
from torchgeo_explora.callbacks.cost import cost_line
from torchgeo_explora.export.card import base_licence
from torchgeo_explora.export.rebuild import outline
from torchgeo_explora.models.zoo.licences import described, is_noncommercial, licence_of
from torchgeo_explora.report import page as parts
from torchgeo_explora.report.changes import lora_norms, relative_changes, whole_blocks
from torchgeo_explora.report.charts import Chart, bar_chart, line_chart
from torchgeo_explora.report.page import Page, Part, Section
from torchgeo_explora.report.pictures import read_pictures
from torchgeo_explora.report.run import Run, number, read_run
from torchgeo_explora.terminal import printable

#: Metrics in words, in the order of the page.
MEASURES = {
    'knn': 'kNN accuracy',
    'quality/rankme': 'effective rank (RankMe)',
    'quality/lidar': 'effective rank of places (LiDAR)',
    'quality/retrieval': 'corners that find their own place',
    'quality/neighbours': 'neighbours that two corners share',
    'quality/alignment': 'alignment of two corners (less is closer)',
    'quality/uniformity': 'uniformity (less is more even)',
    'quality/variance_8': 'variance in 8 components',
}
_LETTERS = {'DINOv2': 'D', 'MAE': 'M'}
#: Settings of the recipe, in words; the page also has the whole configuration.
_RECIPE = {
    'model.init_args.model': 'model',
    'model.init_args.model_args': 'its sizes',
    'model.init_args.weights': 'weights of the base',
    'model.init_args.delta': 'delta folded in',
    'model.init_args.image_size': 'image size',
    'model.init_args.unfreeze': 'blocks trained in full',
    'model.init_args.rank': 'rank of LoRA',
    'model.init_args.alpha': 'alpha of LoRA',
    'model.init_args.adapter': 'adapter',
    'model.init_args.base_lr': 'base rate',
    'model.init_args.lr': 'rate',
    'model.init_args.num_classes': 'classes',
    'data.class_path': 'data',
    'data.init_args': 'its settings',
    'trainer.max_steps': 'most optimizer steps',
    'trainer.max_epochs': 'most epochs',
    'trainer.accumulate_grad_batches': 'batches accumulated',
    'trainer.precision': 'precision',
    'trainer.devices': 'devices',
    'seed_everything': 'seed',
}
#: Tables of downstream tasks, in words.
_TABLES = {
    'confusion_test.csv': 'Confusion matrix of the test: a row for each true class,'
    ' with counts of the predictions',
    'confusion_val.csv': 'Confusion matrix of the validation: a row for each true'
    ' class, with counts of the predictions',
    'worst_test.csv': 'Worst examples of the test: the highest losses',
    'worst_val.csv': 'Worst examples of the validation: the highest losses',
    'probe.csv': 'Classifiers of the probe',
}
#: Largest number of curves on a page.
_MOST_CURVES = 24
_LARGEST_TABLE = 60
_WIDEST_TABLE = 80


def report_run(
    folder: str | os.PathLike[str], weights: str | None = None
) -> tuple[Path, list[str]]:
    """Write `report.html`, one self-contained page, into the folder of a run.

    Args:
        folder: The trainer's root folder.
        weights: The base's weights, a file or the name of published weights, for the
            change of each block relative to it.

    Returns:
        The page, and what could not be read, in sentences.

    Raises:
        NotADirectoryError: If there is no such folder.
        OSError: If the page cannot be written.
        ValueError: If the folder has none of the files that a run leaves, or the
            weights are not the base of its delta.
    """
    run = read_run(folder)
    pictures, problems = read_pictures(run.folder)
    run.problems += problems
    sections = [
        _before_and_after(run),
        _tables(run),
        _curves(run),
        Section('pictures', 'Pictures', [parts.picture(each) for each in pictures]),
        _changes(run, weights),
        _recipe(run),
        _cost(run),
        _delta(run),
        _again(run),
    ]
    page = Page(
        title=title(run),
        subtitle=_subtitle(run),
        state=state(run),
        done=run.finished,
        cards=_cards(run),
        notes=run.problems,
        sections=[section for section in sections if section.parts],
    )
    path = run.folder / 'report.html'
    page.write(path)
    return path, run.problems


def title(run: Run) -> str:
    """Return a run's folder name, after its notation, such as D-[24]-r64, if any."""
    name = notation(run)
    return f'{name}: {run.name}' if name else run.name


def notation(run: Run) -> str:
    """Return the paper's notation of a run with a delta, '' for other runs."""
    if not run.metadata:
        return ''
    adaptation = Adaptation.from_dict(run.metadata['adaptation'])
    letter = _LETTERS.get(run.metadata.get('objective', ''), '')
    try:
        name = adaptation.name(_depth(run))
    except ValueError:
        return ''
    return f'{letter}-{name}' if letter else name


def state(run: Run) -> str:
    """Return whether a run has finished, in words."""
    if run.steps is None:
        steps = 'how far it got is not known'
    else:
        of = f' of {run.planned:,}' if run.planned else ''
        steps = f'{run.steps:,}{of} optimizer steps'
    if not run.pretraining:
        return steps[:1].upper() + steps[1:]
    if run.finished:
        return f'Finished: {steps}'
    if run.delta is None:
        return f'Still going, or stopped before its first checkpoint: {steps}'
    return f'Still going, or stopped early: {steps}'


def _depth(run: Run) -> int:
    assert run.delta is not None
    try:
        return len([*outline(run.delta).get_submodule('blocks').children()])
    except ValueError:  # a backbone of another package
        blocks = [int(n.split('.')[1]) for n in run.tensors if n.startswith('blocks.')]
        return max(blocks, default=-1) + 1


def _subtitle(run: Run) -> str:
    model = run.setting('model.init_args.model')
    if run.metadata and not isinstance(model, str):
        model = run.metadata['arguments'].get('model')
    model = model.get('class_path') if isinstance(model, dict) else model
    data = run.setting('data.class_path')
    found = [
        run.task,
        f'model {parts.short(model)}' if model else '',
        f'data {printable(data, 200).rpartition(".")[2]}' if data else '',
    ]
    return ' · '.join(filter(None, found))


def _cards(run: Run) -> list[tuple[str, str]]:
    cards = []
    for name in ('knn', 'quality/rankme'):
        values = [*run.curve(name).values()]
        if values:
            shown = f'{values[0]:.4g} → {values[-1]:.4g}'
            cards.append(
                (
                    f'{MEASURES[name]}, before → {"after" if run.finished else "now"}',
                    shown,
                )
            )
    for name, value in _final_metrics(run)[:3]:
        cards.append((name, f'{value:.4g}'))
    if run.tensors:
        trained, size = _parameters(run)
        share = f' ({trained / size:.1%})' if size else ''
        cards.append(('parameters trained', f'{trained / 1e6:.2f} M{share}'))
    if 'wall_seconds' in run.cost:
        cards.append(('time', _duration(run.cost['wall_seconds'])))
    if 'kg_co2e' in run.cost:
        cards.append(('carbon', f'{run.cost["kg_co2e"]:.3g} kg CO2e'))
    if run.delta is not None:
        cards.append(('delta', _size(run.delta)))
    return cards


def _final_metrics(run: Run) -> list[tuple[str, float]]:
    """Return the last value of each test metric, else of each validation metric."""
    for split in ('test_', 'val_', 'test/', 'val/'):
        found = [name for name in run.curves if name.startswith(split)]
        if found and not run.pretraining:
            # Losses last.
            found.sort(key=lambda name: ('loss' in name.lower(), name))
            return [(name, [*run.curve(name).values()][-1]) for name in found]
    return []


def _before_and_after(run: Run) -> Section:
    rows = []
    for name, words in MEASURES.items():
        curve = run.curve(name)
        if curve:
            values = [*curve.values()]
            best = max(curve, key=lambda step: curve[step])
            change = f'{values[-1] - values[0]:+.4g}'
            row: list[Any] = [words, values[0], values[-1], change]
            most = f'{curve[best]:.4g} at step {best:,}' if name == 'knn' else '-'
            rows.append([*row, most])
    head = ['measure', 'before', 'after' if run.finished else 'now', 'change', 'best']
    found: list[Part] = []
    if rows:
        found.append(parts.table('Features on images of the run', rows, head))
        found.append(
            parts.text(
                "kNN uses the data module's labels, but only for this measure. The"
                ' measures without labels show whether features collapse, not whether'
                ' they are good.'
            )
        )
    elif run.pretraining:
        found.append(
            parts.text(
                'No measures before and after were found: online kNN needs labels and a'
                ' validation split, and all measures need a logger or last.ckpt.'
            )
        )
    return Section('before-after', 'Before and after', found)


def _tables(run: Run) -> Section:
    """Return the metrics of a probe, a classifier or a segmentation."""
    found: list[Part] = []
    metrics: dict[bool, list[list[Any]]] = {False: [], True: []}
    for name, value in _final_metrics(run):
        metrics['Classwise' in name or '_IoU_' in name].append([name, value])
    for of_a_class, measured in metrics.items():
        caption = f'Metrics{" of each class" if of_a_class else ""}, last values'
        if measured:
            found.append(parts.table(caption, measured, fold=of_a_class))
    for path in sorted(run.folder.glob('*.csv')):
        if path.name == 'metrics.csv':
            continue
        try:
            with path.open(newline='', errors='replace') as file:
                lines = [*islice(csv.reader(file), _LARGEST_TABLE + 2)]
        except (OSError, csv.Error) as error:
            run.problems.append(
                f'{path.name} cannot be read ({printable(error, 200)}).'
            )
            continue
        if len(lines) > 1:
            known = _TABLES.get(path.name)
            caption = f'{known} ({path.name})' if known else path.name
            caption += ', first lines' if len(lines) > _LARGEST_TABLE + 1 else ''
            caption += ', first columns' if len(lines[0]) > _WIDEST_TABLE else ''
            rows = [
                [
                    number(v) if number(v) is not None else v
                    for v in line[:_WIDEST_TABLE]
                ]
                for line in lines[1 : _LARGEST_TABLE + 1]
                if line
            ]
            head = lines[0][:_WIDEST_TABLE]
            found.append(parts.table(caption, rows, head, fold=len(rows) > 12))
    return Section('metrics', 'Metrics', found)


def _curves(run: Run) -> Section:
    names = [name for name in run.curves if len(run.curve(name)) > 1]
    first = [name for name in MEASURES if name in names]
    # What a reader looks for first; the rest is folded.
    first += sorted(
        name
        for name in names
        if name in ('loss', 'lr') or name.startswith(('train_loss', 'val'))
    )
    more = sorted(name for name in names if name not in (*first, 'epoch'))
    if len(first) + len(more) > _MOST_CURVES:
        run.problems.append(
            f'Only the first {_MOST_CURVES} of {len(first) + len(more)} curves are'
            ' drawn.'
        )
    drawn: list[Chart] = [
        line_chart(MEASURES.get(name, name), [run.curve(name)], f'c{index}')
        for index, name in enumerate([*first, *more][:_MOST_CURVES])
    ]
    found = [parts.charts(drawn[: len(first)])] if first else []
    if drawn[len(first) :]:
        found.append(parts.charts(drawn[len(first) :], caption='More curves'))
    return Section('curves', 'Curves', found)


def _changes(run: Run, weights: str | None) -> Section:
    if not run.metadata or run.delta is None:
        return Section('changes', 'Change of each block', [])
    norms, whole, depth = lora_norms(run), whole_blocks(run), _depth(run)
    relative = relative_changes(run, weights) if weights else []
    found: list[Part] = []
    if relative:
        values = [block['all'] for block in relative]
        chart = bar_chart(
            "Relative change of each block, ||W' - W|| / ||W||",
            *(values, "||W' - W|| / ||W||", 'changes'),
        )
        found.append(parts.charts([chart]))
    elif norms:
        chart = bar_chart(
            'Frobenius norm of what LoRA adds to each block',
            *([norms.get(i, 0.0) for i in range(depth)], '||s B A||', 'changes'),
        )
        found.append(parts.charts([chart]))
    if not relative:
        found.append(
            parts.text(
                'This shows only norms of the LoRA product. The change of a block that'
                ' is trained in full can only be measured against the base: give the'
                " base's weights (explora report RUN_DIR --weights FILE) for the change"
                ' of every block relative to it.'
            )
        )
    head = ['block', 'trains', 'norm of the LoRA product']
    head += ['relative change'] if relative else []
    rows: list[list[Any]] = []
    for index in range(depth):
        kind = 'in full' if index in whole else 'LoRA' if index in norms else 'norms'
        row = [str(index + 1), kind, norms.get(index)]
        rows.append(row + ([relative[index]['all']] if relative else []))
    found.append(parts.table('Change of each block', rows, head, fold=True))
    return Section('changes', 'Change of each block', found)


def _recipe(run: Run) -> Section:
    rows: list[list[Any]] = []
    for name, words in _RECIPE.items():
        value = run.setting(name)
        # -1 stands for no limit.
        if value not in (None, -1):
            rows.append([words, value])
    said = {
        'objective': 'objective',
        'recipe': 'settings left at their defaults',
        'effective_batch': 'images per optimizer step',
        'planned_steps': 'optimizer steps planned',
        'mean': 'mean of the pixels',
        'std': 'standard deviation of the pixels',
        'bands': 'bands',
        'pooling': 'embedding judged',
    }
    rows += [
        [words, run.metadata[name]]
        for name, words in said.items()
        if run.metadata.get(name) not in (None, '', 'null')
    ]
    if run.tensors:
        trained, size = _parameters(run)
        of = (
            f' of {size / 1e6:.2f} M of the base ({trained / size:.2%})' if size else ''
        )
        rows.append(['parameters trained', f'{trained / 1e6:.3f} M{of}'])
    found = [parts.table('What was done', rows)] if rows else []
    return Section('recipe', 'Recipe', found)


def _cost(run: Run) -> Section:
    cost = run.cost
    if not cost:
        return Section('cost', 'Cost', [])
    rows: list[list[Any]] = []
    if 'wall_seconds' in cost:
        rows.append(['wall time', _duration(cost['wall_seconds'])])
    if 'device_hours' in cost:
        devices = f'{cost.get("devices", 1):g} x {cost.get("device", "a device")}'
        rows.append(['device hours', f'{cost["device_hours"]:.3g} ({devices})'])
    for name, words, unit in (
        ('images', 'training images seen', ''),
        ('tflop', 'operations, counted', ' TFLOP'),
        ('energy_kwh', 'energy', ' kWh'),
        ('kg_co2e_per_kwh', 'carbon of the grid', ' kg CO2e per kWh'),
        ('kg_co2e', 'carbon', ' kg CO2e'),
    ):
        if name in cost:
            shown = f'{cost[name]:,}' if name == 'images' else f'{cost[name]:,.4g}'
            rows.append([words, f'{shown}{unit}'])
    if 'energy_source' in cost:
        rows.append(['where the energy is from', cost['energy_source']])
    found = [parts.table(f'In short: {cost_line(cost)}', rows)]
    formula = (
        'Carbon = energy x carbon of the grid. Energy = the measured energy, else'
        ' device hours x power of a device. Device hours = wall time x devices,'
        ' including the evaluations in between, but not data preparation or earlier'
        ' runs.'
    )
    if 'energy_kwh' not in cost:
        formula += (
            ' Here nothing was measured, and no power was given: GPUs are measured'
            ' if nvidia-ml-py is installed; set power and intensity of the Cost'
            ' callback for an estimate.'
        )
    found.append(parts.text(formula))
    if 'tflop_formula' in cost and 'tflop' in cost:
        found.append(parts.text(f'Operations: {cost["tflop_formula"]}'))
    return Section('cost', 'Cost', found)


def _delta(run: Run) -> Section:
    if run.delta is None:
        return Section('delta', 'Delta and licences', [])
    metadata = run.metadata
    rows: list[list[Any]] = [
        ['file', f'{run.delta.name}, {_size(run.delta)}'],
        ['fingerprint of the delta (SHA-256)', metadata['delta']],
        ['fingerprint of the base (SHA-256)', metadata['base']],
        ['backbone', metadata['backbone']],
    ]
    rows += [['lineage', each] for each in _lineage(metadata.get('lineage', ''))]
    rows.append(['written by', f'torchgeo-explora {metadata.get("version", "?")}'])
    first = run.config_text.partition('\n')[0]
    if first.startswith('# lightning'):
        rows.append(['trained with', first.removeprefix('# ')])
    found = [parts.table('The file', rows), parts.table('Licences', _licences(run))]
    return Section('delta', 'Delta and licences', found)


def _lineage(text: str) -> list[str]:
    """Return the fingerprints of a base and of what was folded into it, in order."""
    names = text.split('+')[:20] if text else []
    kinds = ['base', *['delta folded in'] * len(names)]
    return [
        f'{kind} {printable(name, 80)}'
        for kind, name in zip(kinds, names, strict=False)
    ] or ['the base, with nothing folded in']


def _licences(run: Run) -> list[list[str]]:
    model = run.metadata['arguments'].get('model')
    weights = run.setting('model.init_args.weights')
    # A file of weights may be anyone's, whatever the architecture.
    name = model if weights is True else weights
    known = base_licence(name) or licence_of(name) if isinstance(name, str) else None
    if known is None:
        return [
            ['base', 'not known by its name: see where its weights come from'],
            ['this delta', 'derived from the base: it allows no more than the base'],
        ]
    ends = ', as are models that it is merged into' if is_noncommercial(known) else ''
    return [
        ['base', described(known)],
        ['this delta', f'derived from the base: {known} or stricter{ends}'],
    ]


def _again(run: Run) -> Section:
    found: list[Part] = []
    if run.config_path is not None:
        place = shlex.quote(str(run.config_path))
        lines = []
        version = run.metadata.get('version')
        if version:
            lines.append(f'pip install torchgeo-explora=={printable(version, 40)}')
        lines.append(
            f'explora fit --config {place} --trainer.default_root_dir another_folder'
        )
        found.append(parts.code('\n'.join(lines)))
        if run.delta is not None:
            words = (
                'The same data, versions and devices give the same delta, with the'
                ' fingerprint above.'
            )
            found.append(parts.text(words))
    if run.config_text:
        found.append(parts.code(run.config_text, 'Configuration (config.yaml)'))
    return Section('reproduce', 'Do it again', found)


def _parameters(run: Run) -> tuple[int, int]:
    """Return the number of parameters of the delta and of the base (0 if unknown)."""
    assert run.delta is not None
    trained = sum(tensor.numel() for tensor in run.tensors.values())
    try:
        size = sum(each.numel() for each in outline(run.delta).parameters())
    except ValueError:
        size = 0
    return trained, size


def _size(path: Path) -> str:
    return f'{path.stat().st_size / 1e6:.2f} MB'


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return (
        f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{minutes} min'
    )
