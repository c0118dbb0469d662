"""One of some processes that share a batch: run by `test_ddp.py`, as a script."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchgeo_explora.adapt import Adaptation, adapt, delta_state_dict, lora
from torchgeo_explora.models import RotaryViT, ViT
from torchgeo_explora.objectives import DINOv2

STEPS = 6


class Terms(nn.Module):
    """The objective's terms as a forward, which is what DDP can wrap."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, global_, local, mask, *guides):
        return self.objective.terms(
            global_, local, mask, 0.05, guides=guides, progress=0.5
        )


def build(options):
    """Return the same small objective in every process."""
    torch.manual_seed(0)
    options = dict(options)
    kind, model, width = ViT, 'vit_tiny_patch16_224', 24
    if options.pop('rotary', False):
        # Heads of 8: a quarter of one is a period.
        kind, model, width = RotaryViT, 'vit_small_patch16_dinov3', 16
    student = kind(
        model, image_size=32, patch_size=8, embed_dim=width, depth=3, num_heads=2
    )
    adapt(student, Adaptation(adapter=lora(4)))
    # KoLeo is each device's own, as in DINOv2: the one term that is not additive.
    return DINOv2(
        student,
        prototypes=32,
        hidden_dim=16,
        bottleneck_dim=8,
        momentum=(0.5, 1.0),
        koleo_weight=0.0,
        clip=0.05,
        steps=STEPS,
        **options,
    )


def train(objective, terms, views, steps=STEPS):
    """Train on the same views; return terms, gradients and the teacher at the end.

    The optimizer is SGD: Adam would divide rounding by rounding.
    """
    named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([p for _, p in named], lr=0.5)
    record = []
    for step in range(steps):
        optimizer.zero_grad()
        values = terms(*views)
        torch.stack(list(values.values())).sum().backward()
        gradients = {name: p.grad.clone() for name, p in named}
        record.append(({k: v.detach() for k, v in values.items()}, gradients))
        objective.before_step(step / steps)
        optimizer.step()
        objective.after_step(step / steps)
    teacher = delta_state_dict(objective.teacher) | {
        f'head.{name}': value
        for name, value in objective.teacher_head.state_dict().items()
    }
    if objective.guides is not None:
        teacher |= {f'guides.{k}': v for k, v in objective.guides.state_dict().items()}
    return {'steps': record, 'teacher': teacher}


def main(folder, rank, world):
    """Train on this rank's share of each job's images."""
    rank, world = int(rank), int(world)
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store{world}', rank=rank, world_size=world
    )
    results = []
    for options, global_, local, mask, *guides in torch.load(f'{folder}/jobs.pt'):
        images = global_.shape[1] // world
        own = slice(rank * images, (rank + 1) * images)
        rows = mask.unflatten(0, (2, -1))[:, own].flatten(0, 1)
        objective = build(options)
        # All parameters get a gradient: DDP need not look for idle ones.
        wrapped = DistributedDataParallel(Terms(objective))
        guides = [values[own] for values in guides]
        views = (global_[:, own], local[:, own], rows, *guides)
        results.append(train(objective, wrapped, views))
    torch.save(results, f'{folder}/{rank}of{world}.pt')
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
