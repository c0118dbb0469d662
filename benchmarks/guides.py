"""What guides do to the class token: a planted factor and a planted nuisance.

    nice -n 10 python benchmarks/guides.py --output benchmarks/results/guides.json

Generated scenes of three regions (slopes that are brighter above, below, or neither),
seen by three sensors (tint, haze, noise, tone), each combination equally often. A tiny
base of random weights is trained on them, once without guides and once with the region
as a guide and the sensor as an adversary, for three seeds. Kind and weights were chosen
on seeds 10 and 11. A linear probe (ridge
regression on one-hot targets) then finds region, sensor and land cover in the teacher's
class tokens of other scenes.
"""

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from report import Report, header
from torch import Tensor
from torch.nn import functional as F

from torchgeo_explora.adapt import Adaptation, adapt
from torchgeo_explora.augment import MultiCropOptions, Preprocess
from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.datasets.synthetic.scenes import DOMAINS
from torchgeo_explora.models import Backbone, ViT
from torchgeo_explora.objectives import DINOv2

SIDE = 32
BATCH = 32
RATE = 5e-3
STATISTICS = ((0.5,) * 3, (0.25,) * 3)
#: How much brighter the upper edge of an image is than its middle.
REGIONS = (-0.2, 0.0, 0.2)
SENSORS: list[dict[str, Any]] = [
    {'tint': (1.0, 1.0, 1.0), 'haze': (0.0, 0.2), 'noise': 0.005, 'gamma': 0.85},
    {'tint': (1.05, 1.0, 0.95), 'haze': (0.1, 0.4), 'noise': 0.03, 'gamma': 1.0},
    {'tint': (0.95, 1.0, 1.07), 'haze': (0.3, 0.6), 'noise': 0.06, 'gamma': 1.1},
]
#: All blocks, patch embedding and positions: random weights have much to learn.
WHOLE = Adaptation((0, 1, 2), adapter=None, modules=('patch_embed', 'pos_embed'))
GUIDE = {'name': 'region', 'values': 3, 'kind': 'classification'}
ADVERSARY = {'name': 'sensor', 'values': 3, 'momentum': 0.95, 'adversarial': True}


def draw(split: Any, length: int) -> dict[str, Tensor]:
    """Return images in [0, 1], their land cover, region and sensor."""
    parts: dict[str, list[Tensor]] = {}
    slope = torch.linspace(1, -1, SIDE).view(-1, 1)
    for region, sensor in itertools.product(range(3), range(3)):
        name: Any = f'region {region}, sensor {sensor}'
        DOMAINS[name] = replace(DOMAINS['source'], **SENSORS[sensor])
        scenes = SyntheticScenes(name, split, size=SIDE, length=length)
        image = scenes.images.float() / 255 * (1 + REGIONS[region] * slope)
        found = {
            'image': image.clamp(0, 1),
            'label': torch.arange(length) % len(scenes.classes),
            'region': torch.full((length,), region),
            'sensor': torch.full((length,), sensor),
        }
        for key, values in found.items():
            parts.setdefault(key, []).append(values)
    return {key: torch.cat(values) for key, values in parts.items()}


def student(seed: int) -> Backbone:
    """Return a base with random weights, as small as those in the tests."""
    torch.manual_seed(seed)
    sizes = {'patch_size': 8, 'embed_dim': 24, 'depth': 3, 'num_heads': 2}
    return ViT('vit_tiny_patch16_224', image_size=SIDE, **sizes)


def train(data: dict[str, Tensor], guides: Any, seed: int, steps: int) -> Backbone:
    """Adapt the base, and return the teacher."""
    backbone = adapt(student(seed), WHOLE)
    # Geometry only: photometric changes would hide the sensor by themselves.
    views = MultiCropOptions(16, 0, (0.4, 1.0), strength=0.0)
    objective = DINOv2(
        backbone,
        views.build(SIDE, 8, *STATISTICS),
        steps=steps,
        prototypes=128,
        hidden_dim=64,
        bottleneck_dim=32,
        momentum=(0.9, 1.0),
        teacher_temperature=(0.02, 0.03),
        guides=guides,
    )
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    order = torch.cat([torch.randperm(len(data['image'])) for _ in range(steps)]).split(
        BATCH
    )
    for step in range(steps):
        progress = step / steps
        optimizer.param_groups[0]['lr'] = RATE * min(1, 10 * progress, 2 - 2 * progress)
        batch = {key: values[order[step]] for key, values in data.items()}
        optimizer.zero_grad()
        torch.stack([*objective(batch, progress).values()]).sum().backward()
        objective.before_step(progress)
        optimizer.step()
        objective.after_step(progress)
    return objective.pretrained


@torch.no_grad()
def probe(
    backbone: Backbone, train: dict[str, Tensor], test: dict[str, Tensor]
) -> dict[str, float]:
    """Return the accuracy of a linear probe of class tokens for each factor."""
    view = Preprocess(SIDE, *STATISTICS)
    first, second = (
        torch.cat(
            [backbone.eval()(view(part)).cls for part in each['image'].split(300)]
        )
        for each in (train, test)
    )
    mean, std = first.mean(0), first.std(0)
    first, second = (
        F.pad((each - mean) / std, (0, 1), value=1.0).double()
        for each in (first, second)
    )
    ridge = len(first) * 1e-3 * torch.eye(first.shape[1], dtype=first.dtype)
    found = {}
    for key in ('region', 'sensor', 'label'):
        wanted = F.one_hot(train[key]).double()
        weights = torch.linalg.solve(first.T @ first + ridge, first.T @ wanted)
        right = (second @ weights).argmax(1) == test[key]
        found[key] = right.float().mean().item()
    return found


def table(content: dict[str, Any]) -> str:
    """Return the accuracies of all seeds as a Markdown table."""
    factors = {
        'region': 'region, guided',
        'sensor': 'sensor, adversarial',
        'label': 'land cover',
    }
    lines = [f'| seed | guides | {" | ".join(factors.values())} |']
    lines += ['|---|---|---|---|---|']
    for part, record in content.items():
        if part.startswith('seed'):
            for name in ('without guides', 'with guides'):
                found = [f'{record[name]["probe"][key]:.3f}' for key in factors]
                lines.append(f'| {part[5:]} | {name[:-7]} | {" | ".join(found)} |')
    return '\n'.join(lines)


def main() -> None:
    """Run three seeds with and without guides."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--steps', type=int, default=150)
    parser.add_argument('--guide', type=float, default=1.0, help='weight')
    parser.add_argument('--adversary', type=float, default=1.0, help='weight')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--length', type=int, default=100, help='of each combination')
    parser.add_argument('--commit', help='if git cannot tell')
    options = parser.parse_args()
    torch.set_num_threads(1)
    both = [
        GUIDE | {'weight': options.guide},
        ADVERSARY | {'weight': options.adversary},
    ]
    seen, other = draw('train', options.length), draw('test', options.length)
    content = header(torch.device('cpu'), options.commit) | {
        'setting': {'steps': options.steps, 'batch': BATCH, 'guides': both}
    }
    names = tuple(f'seed {seed}' for seed in range(options.seeds))
    report = Report(options.output, names, content)

    def of_seed(seed: int, record: dict[str, Any]) -> None:
        for name, guides in (('without guides', ()), ('with guides', both)):
            began = time.process_time()
            teacher = train(seen, guides, seed, options.steps)
            record[name] = {
                'probe': probe(teacher, seen, other),
                'cpu_seconds': round(time.process_time() - began, 1),
            }
            print(name, record[name], flush=True)

    for seed in range(options.seeds):
        report.run(f'seed {seed}', lambda record, seed=seed: of_seed(seed, record))


if __name__ == '__main__':
    main()
