"""Adapt a real ViT-Ti to real images in minutes, and measure the gain."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from parity import full_float32
from PIL import Image
from report import NotRunError
from steps import peak, release, reset_peak
from timing import Clock
from torch import Tensor, nn
from training import TINY, Sizes, build, optimizer_of, set_rate, train_step

from torchgeo_explora.adapt import count, save_delta
from torchgeo_explora.augment import Preprocess
from torchgeo_explora.functional import knn_vote
from torchgeo_explora.models import Backbone, ViT
from torchgeo_explora.objectives import DINOv2

SPLITS = ('train', 'val', 'test')
#: Shares of a variant's time: for its steps, and after which it stops in any case.
TRAINING, LAST = 0.8, 0.95
POINTS = 10
#: Weights of the linear probe's penalty, one of which is chosen on the val split.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Recipe:
    """What a variant sets; the rest is the task's default."""

    name: str
    strength: float = 1.0
    base_lr: float = 1e-3
    rank: int = 64
    alpha: int = 1
    prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    local_views: int = 8
    momentum: tuple[float, float] = (0.994, 1.0)


RECIPES = (Recipe('photometric'), Recipe('geometric', strength=0.0))
SMALL_HEAD = {k: v for k, v in TINY._asdict().items() if k != 'image_size'}


class Split(NamedTuple):
    """Images of a folder, on the device."""

    image: Tensor
    """(N, 3, H, W), uint8."""
    label: Tensor
    """(N,), int64."""


@dataclass(frozen=True)
class Setting:
    """Settings that all variants share."""

    data: Path
    weights: Path
    model: str
    arguments: dict[str, Any]
    image_size: int
    batch: int
    device: torch.device
    steps: int | None

    def student(self) -> ViT:
        """Return the plain base."""
        arguments = {'image_size': self.image_size} | self.arguments
        return ViT(self.model, self.weights, **arguments)


def run(
    record: dict[str, Any],
    device: torch.device,
    tiny: bool,
    left: Callable[[], float],
    save: Callable[[], None],
    data: Path | None,
    weights: Path | None,
    steps: int | None,
    recipes: tuple[Recipe, ...],
    output: Path,
) -> None:
    """Fill the part.

    Args:
        record: Gets the results.
        device: Where to train.
        tiny: Toy sizes; the weights are then of a ViT of depth 2 and width 24.
        left: Seconds that this part may still take.
        save: Writes what is known.
        data: Folder with train, val and test, one folder per class inside.
        weights: Weights of timm's vit_tiny_patch16_224.
        steps: Optimizer steps; as many as time allows if None.
        recipes: Variants, in order of importance.
        output: Deltas are written beside it.
    """
    if data is None or weights is None:
        raise NotRunError('it needs --data and --weights')
    small = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}
    setting = Setting(
        data,
        weights,
        'vit_tiny_patch16_224',
        small if tiny else {},
        32 if tiny else 224,
        8 if tiny else 256,
        device,
        steps,
    )
    splits = {name: read(data / name, device) for name in SPLITS}
    if tiny:
        recipes = tuple(replace(recipe, **SMALL_HEAD) for recipe in recipes)
    record |= {
        'what': f'{setting.model} {setting.arguments}, D-[-1] with LoRA, bfloat16'
        ' autocast, all images on the device as uint8, labels for evaluation only;'
        ' the teacher is evaluated in float32; k = 10 for kNN; the linear probe is a'
        ' logistic regression whose penalty is chosen on val',
        'images': {name: list(split.image.shape) for name, split in splits.items()},
        'classes': len(splits['train'].label.unique()),
        'image_size': setting.image_size,
        'batch': setting.batch,
    }
    base = setting.student().to(device)
    record['before'] = evaluate(base, splits, setting)
    del base
    save()
    record['variants'] = {}
    for number, recipe in enumerate(recipes):
        seconds = left() / (len(recipes) - number)
        found: dict[str, Any] = {'recipe': asdict(recipe)}
        record['variants'][recipe.name] = found
        if seconds < 30:
            reason = f'{max(seconds, 0):.0f} s are left for it, and it needs 30'
            found |= {'status': 'not run', 'reason': reason}
        else:
            found['status'] = 'not finished'
            file = output.with_name(f'{output.stem}_{recipe.name}.safetensors')
            try:
                adapt_one(found, recipe, setting, splits, seconds, save, file)
                found['status'] = 'done'
            except (FloatingPointError, torch.OutOfMemoryError) as error:
                found |= {'status': 'failed', 'reason': repr(error)}
        release()
        save()
    states = {name: found['status'] for name, found in record['variants'].items()}
    if 'failed' in states.values():
        raise RuntimeError(f'a variant failed: {states}')


def adapt_one(
    found: dict[str, Any],
    recipe: Recipe,
    setting: Setting,
    splits: dict[str, Split],
    seconds: float,
    save: Callable[[], None],
    file: Path,
) -> None:
    """Adapt by one recipe, with a curve on val and figures on test."""
    start = time.perf_counter()
    each = seconds_of_a_step(recipe, setting, splits['train'].image)
    spent = time.perf_counter() - start
    steps = setting.steps or max(1, int((TRAINING * seconds - spent) / each))
    torch.manual_seed(0)
    objective = objective_of(recipe, setting)
    objective.steps = steps
    trained, size = count(objective.student)
    found |= {
        'planned_steps': steps,
        'parameters': {'trained': trained, 'base': size},
        'curve': [],
    }
    optimizer = optimizer_of(objective)
    batches = shuffled(splits['train'].image, setting.batch)
    clock = Clock(setting.device)
    training = 0.0
    points = {round(steps * point / POINTS) for point in range(POINTS + 1)}
    reset_peak(setting.device)
    loss: Tensor | None = None
    began = time.perf_counter()
    done = 0
    while True:
        late = time.perf_counter() - start > LAST * seconds
        if done in points or late:
            value = None if loss is None else loss.item()  # waits for the device
            training += time.perf_counter() - began
            if value is not None and not np.isfinite(value):
                raise FloatingPointError(f'the loss is {value} at step {done}')
            point = {'step': done, 'loss': value, 'seconds': round(training, 2)}
            point |= {k: v.item() for k, v in objective.diagnostics.items()}
            seen = {k: v for k, v in splits.items() if k != 'test'}
            features, labels = embed_all(objective.teacher, seen, setting)
            point['knn_val'] = knn(features, labels, 'val')
            found['curve'].append(point)
            save()
            began = time.perf_counter()
        if done == steps or late:
            break
        set_rate(optimizer, done, steps, recipe.base_lr, setting.batch)
        # The clock keeps the marks of every step, which would pile up.
        clock.steps.clear()
        loss = train_step(objective, optimizer, next(batches), done / steps, clock)
        done += 1
    found |= {
        'steps': done,
        'stopped_early': done < steps,
        'seconds_of_training': round(training, 2),
        'images_per_second': round(done * setting.batch / training, 1),
        'peak_memory_gib': peak(setting.device),
        'after': evaluate(objective.teacher, splits, setting),
    }
    metadata = {'objective': 'DINOv2', 'recipe': recipe.name, 'steps': str(done)}
    save_delta(objective.teacher, file, metadata)
    found['delta'] = {
        'file': file.name,
        'mib': round(file.stat().st_size / 2**20, 3),
    }


def objective_of(recipe: Recipe, setting: Setting) -> DINOv2:
    """Return the objective around the adapted base."""
    sizes = Sizes(
        setting.image_size,
        recipe.local_views,
        recipe.prototypes,
        recipe.hidden_dim,
        recipe.bottleneck_dim,
    )
    return build(
        setting.student(),
        sizes,
        setting.device,
        recipe.rank,
        recipe.alpha,
        recipe.momentum,
        recipe.strength,
    )


def seconds_of_a_step(recipe: Recipe, setting: Setting, image: Tensor) -> float:
    """Time ten steps of an objective that is then discarded."""
    objective = objective_of(recipe, setting)
    optimizer = optimizer_of(objective)
    batches = shuffled(image, setting.batch)
    clock = Clock(setting.device)
    for number in range(15):
        if number == 5:
            reset_peak(setting.device)  # waits for the device
            began = time.perf_counter()
        train_step(objective, optimizer, next(batches), 0.5, clock)
    clock.milliseconds()  # waits for the device
    return (time.perf_counter() - began) / 10


def shuffled(image: Tensor, batch: int) -> Any:
    """Yield batches of *image* endlessly, shuffled anew in each epoch."""
    if len(image) < batch:
        raise ValueError(f'{len(image)} training images do not fill a batch of {batch}')
    while True:
        order = torch.randperm(len(image)).to(image.device)
        for rows in order.split(batch):
            if len(rows) == batch:
                yield image[rows]


def read(folder: Path, device: torch.device) -> Split:
    """Read a folder of class folders, whose RGB images have the same size."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
    ]

    def pixels(path: Path) -> Tensor:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert('RGB')))

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(pixels, [path for path, _ in files]))
    stacked = torch.stack(images).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([label for _, label in files])
    return Split(stacked.to(device), labels.to(device))


@torch.no_grad()
def embed(backbone: Backbone, image: Tensor, setting: Setting) -> Tensor:
    """Return class tokens, (N, D), float32."""
    backbone.eval()
    host: Any = backbone
    view = Preprocess(setting.image_size, host.mean, host.std).to(image.device)
    parts = image.split(512)
    with full_float32():
        return torch.cat([backbone(view(x.float().div_(255))).cls for x in parts])


def embed_all(
    backbone: Backbone, splits: dict[str, Split], setting: Setting
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return features and labels of all splits."""
    features = {k: embed(backbone, split.image, setting) for k, split in splits.items()}
    return features, {name: split.label for name, split in splits.items()}


def knn(features: dict[str, Tensor], labels: dict[str, Tensor], split: str) -> float:
    """Return the accuracy of 10 nearest neighbours among the training images."""
    unit = {k: nn.functional.normalize(x, dim=-1) for k, x in features.items()}
    classes = int(labels['train'].max()) + 1
    votes = knn_vote(unit['train'], labels['train'], unit[split], 10, classes)
    return accuracy(votes, labels[split])


def accuracy(scores: Tensor, label: Tensor) -> float:
    """Return the share of rows whose largest score is that of the label."""
    return (scores.argmax(-1) == label).double().mean().item()


def evaluate(
    backbone: Backbone, splits: dict[str, Split], setting: Setting
) -> dict[str, Any]:
    """Return accuracies of kNN and of a linear probe on val and test."""
    features, labels = embed_all(backbone, splits, setting)
    found: dict[str, Any] = {
        f'knn_{split}': knn(features, labels, split) for split in ('val', 'test')
    }
    mean, std = features['train'].mean(0), features['train'].std(0) + 1e-6
    inputs = {name: ((x - mean) / std).double() for name, x in features.items()}
    best: dict[str, Any] = {'linear_val': -1.0}
    for penalty in PENALTIES:
        layer = probe(inputs['train'], labels['train'], penalty)
        scores = {
            f'linear_{split}': accuracy(layer(inputs[split]), labels[split])
            for split in ('val', 'test')
        }
        if scores['linear_val'] > best['linear_val']:
            best = scores | {'linear_penalty': penalty}
    return found | best


def probe(features: Tensor, label: Tensor, penalty: float) -> nn.Linear:
    """Return a logistic regression, fitted by L-BFGS to its minimum.

    Args:
        features: Standardised, (N, D), float64.
        label: (N,).
        penalty: Factor of half the squared norm of the weights.
    """
    layer = nn.Linear(features.shape[1], int(label.max()) + 1).to(features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=300, line_search_fn='strong_wolfe'
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(features), label)
        loss = loss + penalty / 2 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer.requires_grad_(False)
