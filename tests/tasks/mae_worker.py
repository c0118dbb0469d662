"""One of two processes that share a batch: run by `test_mae_ddp.py`, as a script."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchgeo_explora.adapt import Adaptation, adapt, lora
from torchgeo_explora.models import GroupChannelViT, RotaryViT, ViT
from torchgeo_explora.objectives import MAE


class Loss(nn.Module):
    """The objective's loss as a forward, which is what DDP can wrap."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, image, mask):
        return self.objective.loss(image, mask)


def build(kind):
    """Return the same small objective in every process, its decoder adapted."""
    torch.manual_seed(0)
    sizes = {'image_size': 32, 'patch_size': 8, 'depth': 2, 'num_heads': 2}
    if kind == 'groups':
        student = GroupChannelViT(
            ('B02', 'B03', 'B04'),
            (('B03', 'B04'), ('B02',)),
            embed_dim=24,
            channel_embed_dim=8,
            **sizes,
        )
    elif kind == 'rotary':
        student = RotaryViT('vit_small_patch16_dinov3', embed_dim=16, **sizes)
    else:
        student = ViT('vit_tiny_patch16_224', embed_dim=24, **sizes)
    fresh = getattr(student, 'scratch', ())
    adapt(student, Adaptation(adapter=lora(4), modules=fresh))
    objective = MAE(student, 16, 2, 2, decoder_channel_dim=8)
    pred = ('pred',) if kind == 'groups' else ()
    adaptation = Adaptation((), cls_token=False, adapter=lora(2), modules=pred)
    adapt(objective.decoder, adaptation)
    return objective


def train(objective, loss, image, mask, steps=2):
    """Train on the same images; return losses and gradients.

    The optimizer is SGD: Adam would divide rounding by rounding.
    """
    named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([p for _, p in named], lr=0.5)
    record = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(image, mask)
        value.backward()
        gradients = {name: p.grad.clone() for name, p in named}
        record.append((value.detach(), gradients))
        optimizer.step()
    return record


def main(folder, rank):
    """Train on this rank's share of each job's images."""
    rank = int(rank)
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    results = []
    for kind, image, mask in torch.load(f'{folder}/jobs.pt'):
        half = len(image) // 2
        own = slice(rank * half, (rank + 1) * half)
        objective = build(kind)
        # All parameters get a gradient: DDP need not look for idle ones.
        wrapped = DistributedDataParallel(Loss(objective))
        results.append(train(objective, wrapped, image[own], mask[own]))
    torch.save(results, f'{folder}/{rank}.pt')
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
