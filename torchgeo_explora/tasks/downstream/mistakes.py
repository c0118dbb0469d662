"""What an evaluation got wrong: the confusion of classes, and the worst examples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    interpolate,
)

from torchgeo_explora.callbacks.figures import panels, save_figure, shown_channels
from torchgeo_explora.tasks.downstream.accuracies import write_table
from torchgeo_explora.writing import remove_from

#: Longest side of the pictures that are kept, in pixels.
_SIDE = 256
_COLUMNS = 4
#: The most classes that can be told apart in a picture.
_DRAWN = 100


class Example(NamedTuple):
    """An image with its truth and its prediction."""

    loss: float
    image: Tensor
    """(3, h, w) in [0, 1]; empty if it is read only at the end."""
    truth: Tensor
    """Class () or labels (C,); or the class of each pixel (h, w), -1 for none."""
    guess: Tensor
    """Probabilities (C,); or classes (h, w)."""
    path: str = ''
    """File of the image, '' if it is not known."""
    number: int = -1
    """Number of the image in the data set, -1 if it is not known."""


class Worst:
    """The examples with the highest losses, out of any number.

    Args:
        most: Number of examples kept.
    """

    def __init__(self, most: int = 12) -> None:
        """Start without examples."""
        self.most = most
        self.examples: list[Example] = []

    def take(self, losses: Tensor, make: Callable[[int, float], Example]) -> None:
        """Take a batch.

        Args:
            losses: (B,), -inf where an image does not count. NaN counts as the worst.
            make: Returns the example with a given number in the batch and a given loss.
                It is called only for examples that are kept, at least until worse ones
                come.
        """
        losses = losses.float().nan_to_num(torch.inf, torch.inf, -torch.inf)
        found = losses.topk(min(self.most, len(losses)))
        pairs = zip(found.values.tolist(), found.indices.tolist(), strict=True)
        for loss, index in pairs:
            full = len(self.examples) == self.most
            if loss > (self.examples[-1].loss if full else -torch.inf):
                self.examples.append(make(index, loss))
                self._sort()

    def drain(self, world_size: int = 1) -> list[Example]:
        """Return the examples of all processes, the worst first, and start again.

        All processes must call it. An image that several of them have seen, because
        their shares are filled up to equal sizes, is returned once.
        """
        if world_size > 1:
            shares: list[Any] = [None] * world_size
            torch.distributed.all_gather_object(shares, self.examples)
            once = {_key(example): example for share in shares for example in share}
            self.examples = [*once.values()]
            self._sort()
        found, self.examples = self.examples, []
        return found

    def _sort(self) -> None:
        self.examples.sort(key=lambda example: -example.loss)
        del self.examples[self.most :]


def _key(example: Example) -> tuple[Any, ...]:
    """Return a key that is equal only for the same image of a data set.

    Windows of a scene share its path, and many data sets give neither path nor number.
    """
    return example.path, example.number, example.image.numpy().tobytes()


def label_losses(logits: Tensor, labels: Tensor, ignore: int | None = None) -> Tensor:
    """Return the cross-entropy of each image, (B,).

    Args:
        logits: (B, C).
        labels: Classes (B,), or 0 or 1 for each of several labels (B, C).
        ignore: Class of images that do not count, or value of labels that do not.

    Returns:
        -inf for an image without a label that counts.
    """
    counted = labels != ignore if ignore is not None else torch.ones_like(labels) > 0
    known = labels.where(counted, 0)
    if labels.ndim == 2:
        entropy = binary_cross_entropy_with_logits(
            logits.float(), known.float(), reduction='none'
        )
        number = counted.sum(1)
        means = entropy.where(counted, 0).sum(1) / number.clamp(min=1)
        return means.where(number > 0, -torch.inf)
    losses = cross_entropy(logits.float(), known, reduction='none')
    return losses.where(counted, -torch.inf)


def small_picture(backbone: Any, image: Tensor) -> Tensor:
    """Return an image in the form that is kept, (3, h, w) in [0, 1] on the CPU.

    Args:
        backbone: Decides which channels are shown.
        image: In [0, 1], (C, H, W); of a series (T, C, H, W), the first is shown.
    """
    first = image[0] if image.ndim == 4 else image
    first = first[shown_channels(backbone, None)].float().nan_to_num()
    shape = _small(first.shape[-2:])
    shown = interpolate(first[None], shape, mode='area')[0]
    return shown.clamp(0, 1).cpu()


def small_mask(classes: Tensor) -> Tensor:
    """Return the classes of pixels (H, W) in the form that is kept, on the CPU."""
    shape = _small(classes.shape)
    shown = interpolate(classes[None, None].float(), shape, mode='nearest-exact')
    return shown[0, 0].to(torch.int16).cpu()


def _small(shape: Sequence[int]) -> list[int]:
    scale = min(1.0, _SIDE / max(shape))
    return [max(1, round(side * scale)) for side in shape]


def place_of(batch: Mapping[str, Any], index: int) -> tuple[str, int]:
    """Return `path` and `index` of an example, as far as its batch has them."""
    path = str(batch['path'][index]) if 'path' in batch else ''
    return path, int(batch['index'][index]) if 'index' in batch else -1


def with_paths(examples: Sequence[Example], dataset: Any) -> list[Example]:
    """Return examples with the paths that their data set knows.

    It is asked once, because many data sets build the list of all paths each time.
    """
    unknown = any(not each.path and each.number >= 0 for each in examples)
    paths = getattr(dataset, 'paths', None) if unknown else None
    # In data sets of other packages it may be a folder.
    if not isinstance(paths, list | tuple):
        return [*examples]
    return [
        each
        if each.path or each.number < 0
        else each._replace(path=str(paths[each.number]))
        for each in examples
    ]


def class_names(dataset: Any, count: int, given: Sequence[str] | None) -> list[str]:
    """Return names of the classes: those given, the data set's, or their numbers."""
    names = given or getattr(dataset, 'classes', None)
    # Some data sets have a mapping, or fewer names than outputs.
    if isinstance(names, list | tuple) and len({*map(str, names)}) == count:
        return [str(name) for name in names]
    return [str(number) for number in range(count)]


def write_mistakes(
    trainer: Trainer,
    counts: Tensor | None,
    examples: Sequence[Example],
    names: Sequence[str],
    split: str,
) -> None:
    """Write what a classification got wrong: the confusion, and the worst examples.

    Args:
        trainer: The trainer.
        counts: See `write_confusion`; None where an image may have several labels.
        examples: See `write_worst_labels`.
        names: Names of the classes.
        split: What was evaluated, 'val' or 'test'.
    """
    if counts is not None:
        write_confusion(trainer, counts, names, split)
    write_worst_labels(trainer, examples, names, split)


def write_confusion(
    trainer: Trainer, counts: Tensor, names: Sequence[str], split: str
) -> None:
    """Write `confusion_SPLIT.csv` and `confusion_SPLIT.png` in the first process.

    With more than 100 classes there is no picture.

    Args:
        trainer: The trainer.
        counts: (C, C), truth by prediction.
        names: Names of the classes.
        split: What was evaluated, 'val' or 'test'.
    """
    if not trainer.is_global_zero:
        return
    rows = [
        {'true': name} | dict(zip((f'as {each}' for each in names), row, strict=True))
        for name, row in zip(names, counts.long().tolist(), strict=True)
    ]
    write_table(trainer, f'confusion_{split}', rows)
    if len(counts) <= _DRAWN:
        figure = draw_confusion(counts, names)
        figure.suptitle(f'confusion in {split}', fontsize=9)
        save_figure(figure, f'confusion_{split}', trainer)
    else:
        _forget(trainer, f'confusion_{split}.png')


def draw_confusion(counts: Tensor, names: Sequence[str] | None = None) -> Figure:
    """Return a picture of a confusion matrix; each row shows shares of a true class.

    Args:
        counts: (C, C), truth by prediction. A class without samples stays empty.
        names: Names of the classes; their numbers if None.
    """
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).cpu().numpy()
    size = len(shares)
    side = max(3.0, 0.25 * size + 1.5)
    figure = Figure(figsize=(side + 0.6, side), layout='constrained')
    axes = figure.subplots()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap='Blues')
    figure.colorbar(picture, ax=axes, shrink=0.8)
    labels = list(names) if names else [str(i) for i in range(size)]
    axes.set_xticks(range(size), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(size), labels, fontsize=7)
    axes.set_xlabel('predicted')
    axes.set_ylabel('true')
    if size <= 12:
        for row in range(size):
            for column in range(size):
                share = shares[row, column]
                colour = 'white' if share > 0.5 else 'black'
                text = f'{share:.2f}'
                axes.text(
                    column, row, text, ha='center', va='center', color=colour, size=6
                )
    return figure


def write_worst_labels(
    trainer: Trainer, examples: Sequence[Example], names: Sequence[str], split: str
) -> None:
    """Write `worst_SPLIT.csv` and `.png` of a classification in the first process.

    Args:
        trainer: The trainer.
        examples: The worst first. If there are none, nothing is written, and the files
            of an earlier evaluation are removed.
        names: Names of the classes.
        split: What was evaluated, 'val' or 'test'.
    """
    if not trainer.is_global_zero:
        return
    if not examples:
        _forget(trainer, f'worst_{split}.csv', f'worst_{split}.png')
        return
    rows = [_in_words(example, names) for example in examples]
    write_table(trainer, f'worst_{split}', rows)
    columns = min(_COLUMNS, len(examples))
    lines = -(-len(examples) // columns)
    figure, grid = panels(lines, columns)
    figure.set_size_inches(2.1 * columns, 2.4 * lines)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, example, row in zip(grid.flat, examples, rows, strict=False):
        axes.imshow(example.image.permute(1, 2, 0).numpy())
        probability = f' {row["probability"]:.0%}' if 'probability' in row else ''
        said = (
            f'predicted: {row["predicted"][:30]}{probability}\ntrue: {row["true"][:30]}'
        )
        axes.set_title(said, fontsize=7)
    figure.suptitle(f'highest losses in {split}', fontsize=9)
    save_figure(figure, f'worst_{split}', trainer)


def _forget(trainer: Trainer, *names: str) -> None:
    """Remove files of an earlier evaluation, which would not match the new ones."""
    for name in names:
        remove_from(trainer.default_root_dir, name)


def _in_words(example: Example, names: Sequence[str]) -> dict[str, Any]:
    """Return an example of a classification as a row of a table."""
    truth, guess = example.truth, example.guess
    row: dict[str, Any] = {'loss': round(example.loss, 4)}
    if truth.ndim == 0:
        best = int(guess.argmax())
        row |= {'true': names[int(truth)], 'predicted': names[best]}
        row['probability'] = round(float(guess[best]), 4)
    else:
        for column, chosen in (('true', truth == 1), ('predicted', guess > 0.5)):
            found = [n for n, is_in in zip(names, chosen, strict=True) if is_in]
            row[column] = ', '.join(found) or 'none'
    return row | ({'path': example.path} if example.path else {})


def write_worst_masks(
    trainer: Trainer, examples: Sequence[Example], classes: int, split: str
) -> None:
    """Write `worst_SPLIT.csv` and `.png` of a segmentation in the first process.

    *right* is the share of correct pixels, after a large image has been reduced.

    Args:
        trainer: The trainer.
        examples: The worst first. If there are none, nothing is written, and the files
            of an earlier evaluation are removed.
        classes: Number of classes.
        split: What was evaluated, 'val' or 'test'.
    """
    if not trainer.is_global_zero:
        return
    if not examples:
        _forget(trainer, f'worst_{split}.csv', f'worst_{split}.png')
        return
    rows, names = [], []
    for example in examples:
        right = (example.truth == example.guess)[example.truth != -1].float().mean()
        row = {'loss': round(example.loss, 4), 'right': round(float(right), 4)}
        rows.append(row | ({'path': example.path} if example.path else {}))
        names.append(f'loss {example.loss:.3g}\n{right:.0%} right')
    write_table(trainer, f'worst_{split}', rows)
    figure = draw_masks(
        [(each.image, each.truth, each.guess) for each in examples], classes, names
    )
    figure.suptitle(f'highest losses in {split}', fontsize=9)
    save_figure(figure, f'worst_{split}', trainer)


def draw_masks(
    rows: Sequence[tuple[Tensor, Tensor, Tensor]],
    classes: int,
    names: Sequence[str] = (),
) -> Figure:
    """Return a picture of images, truth and predictions side by side.

    Args:
        rows: Image (3, H, W) in [0, 1], and two maps of classes (H, W), the true one
            -1 where pixels do not count.
        classes: Number of classes.
        names: Text beside each row.
    """
    figure, grid = panels(len(rows), 3)
    for line, (image, truth, guess) in zip(grid, rows, strict=True):
        line[0].imshow(image.permute(1, 2, 0).cpu().numpy())
        for axes, each in zip(line[1:], (truth, guess), strict=True):
            shown = each.masked_fill(truth == -1, -1).cpu().numpy()
            axes.imshow(shown, vmin=-1, vmax=classes - 1, cmap='nipy_spectral')
    for axes, title in zip(grid[0], ('image', 'truth', 'prediction'), strict=True):
        axes.set_title(title, fontsize=8)
    for line, name in zip(grid, names, strict=False):
        line[0].set_ylabel(name, fontsize=7)
    return figure
