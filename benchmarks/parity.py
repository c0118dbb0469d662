"""Do the device and bfloat16 give what float32 on a CPU gives?"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from torchgeo_explora.augment import MultiCrop
from torchgeo_explora.functional import (
    block_masks,
    dino_loss,
    ibot_loss,
    sinkhorn_knopp,
)
from torchgeo_explora.models import ViT
from torchgeo_explora.models.checkpoints import from_dinov2
from torchgeo_explora.objectives import DINOv2

GOLDEN = Path(__file__).parent.parent / 'tests/golden/dinov2_ssl_step.safetensors'
OUT = 'out.shared_sk.'
#: Relative tolerance of terms and gradients in float32, against the reference.
STEP = 1e-4
#: Largest difference of a view's values in [0, 1]. Solarization jumps by 1/255.
GEOMETRY, PHOTOMETRIC = 1e-4, 5e-3
#: Relative tolerance of a function that gets the same bfloat16 numbers as float32.
SAME = 1e-5


def run(record: dict[str, Any], device: torch.device, tiny: bool) -> None:
    """Fill the part; 'within' is False if any tolerance is broken.

    The step runs without TF32, the rest with torch's own settings.
    """
    with full_float32():
        exact = golden_step(device, torch.float32)
        half = golden_step(device, torch.bfloat16)
    found = {
        'step_float32': exact,
        'step_bfloat16': half,
        'augment': augment(device, tiny),
        'functions': functions(device, tiny),
    }
    within = all(entry.get('within', True) for entry in found.values())
    record |= {'within': within} | found


@contextmanager
def full_float32() -> Iterator[None]:
    """Switch TF32 off, and restore it afterwards."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def deviation(found: Tensor, expected: Tensor) -> float:
    """Return ||found - expected|| / ||expected||; NaN is infinite."""
    expected = expected.detach().to(found.device, torch.float64)
    off = (found.detach().double() - expected).norm() / expected.norm()
    return off.nan_to_num(torch.inf, torch.inf).item()


def golden_step(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Compare one step with DINOv2's own, as tests/objectives does on a CPU.

    Args:
        device: Where the step runs.
        dtype: Float32, which must agree, or the autocast type, which is only reported.
    """
    with safe_open(GOLDEN, 'pt') as file:
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()['config'])
    objective = _reference(tensors, config).to(device)
    images = config['B'][0]
    global_, local = (
        tensors[f'in.r0.{kind}_crops'].unflatten(0, (-1, images)).to(device)
        for kind in ('global', 'local')
    )
    mask = tensors['in.r0.masks'].bool().to(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        terms = objective.terms(global_, local, mask, config['teacher_temp'])
        total = torch.stack([*terms.values()]).sum()
    total.backward()

    # The reference reports half of what it adds to the total.
    expected = {
        'dino_local': tensors[OUT + 'dino_local_crops_loss'],
        'dino_global': tensors[OUT + 'dino_global_crops_loss'],
        'koleo': 2 * tensors[OUT + 'koleo_loss'],
        'ibot': 2 * tensors[OUT + 'ibot_loss'],
        'total': tensors[OUT + 'total'],
    }
    named = _named(objective)
    gradients, norms = {}, {}
    for key, value in tensors.items():
        if key.startswith('grad.shared_sk.'):
            name = key.removeprefix('grad.shared_sk.')
            found = torch.cat([_gradient(p) for p in named[name]])
            gradients[name] = deviation(found.view_as(value), value)
        elif key.startswith(OUT + 'gradnorm.'):
            name = key.removeprefix(OUT + 'gradnorm.')
            found = torch.cat([_gradient(p).flatten() for p in named[name]]).norm()
            norms[name] = deviation(found, value)
    for part in ('backbone', 'dino_head'):
        members = [p for name, some in named.items() for p in some if part in name]
        norm = torch.stack([_gradient(p).norm() for p in members]).norm()
        norms[f'all of {part}'] = deviation(
            norm, tensors[f'{OUT}clip_total_norm.{part}']
        )
    found_terms = terms | {'total': total}
    result: dict[str, Any] = {
        'terms': {k: deviation(found_terms[k], v) for k, v in expected.items()},
        'gradients': gradients,
        'gradient_norms': norms,
    }
    result['largest'] = {key: max(some.values()) for key, some in result.items()}
    if dtype == torch.float32:
        result['tolerance'] = STEP
        result['within'] = max(result['largest'].values()) <= STEP
    return result


def _reference(tensors: dict[str, Tensor], config: dict[str, Any]) -> DINOv2:
    """Return the reference's student and teacher in our objective, all trainable."""
    shape, head = config['backbone'], config['overrides']['dino']
    student = ViT(
        'vit_small_patch14_dinov2',
        image_size=shape['img_size'],
        embed_dim=shape['embed_dim'],
        depth=shape['depth'],
        num_heads=shape['num_heads'],
        mlp_ratio=shape['mlp_ratio'],
    )
    states = {}
    for whose in ('student', 'teacher'):
        prefix = f'sd.{whose}.backbone.'
        state = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        states[whose], _ = from_dinov2(state)
    student.load_state_dict(states['student'])
    objective = DINOv2(
        student,
        prototypes=head['head_n_prototypes'],
        hidden_dim=head['head_hidden_dim'],
        bottleneck_dim=head['head_bottleneck_dim'],
        koleo_weight=head['koleo_loss_weight'],
        mask_token=tensors['sd.student.backbone.mask_token'],
    )
    objective.mask_token.requires_grad_(True)
    objective.teacher.load_state_dict(states['teacher'])
    for whose, module in (
        ('student', objective.head),
        ('teacher', objective.teacher_head),
    ):
        with torch.no_grad():
            for name, parameter in _layers(module).items():
                parameter.copy_(tensors[f'sd.{whose}.dino_head.{name}'])
    return objective


def _layers(head: nn.Module) -> dict[str, nn.Parameter]:
    """Return a head's parameters under the reference's names, in its order."""
    names = [f'mlp.{i}.{kind}' for i in (0, 2, 4) for kind in ('weight', 'bias')]
    names += ['last_layer.weight_g', 'last_layer.weight_v']
    return dict(zip(names, head.parameters(), strict=True))


def _named(objective: DINOv2) -> dict[str, list[Tensor]]:
    """Map the reference's names to parameters, with q, k and v together."""
    named: dict[str, list[Tensor]] = {'backbone.mask_token': [objective.mask_token]}
    for name, parameter in _layers(objective.head).items():
        named[f'dino_head.{name}'] = [parameter]
    for name, parameter in objective.student.named_parameters():
        for part in ('q', 'k', 'v'):
            name = name.replace(f'attn.{part}.', 'attn.qkv.')
        named.setdefault(f'backbone.{name}', []).append(parameter)
    return named


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError('a parameter that the reference trains got no gradient')
    return parameter.grad


def augment(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Compare views with one seed, on the device and on the CPU, in [0, 1]."""
    images, side, size = (2, 32, 28) if tiny else (16, 256, 224)
    low = torch.rand(images, 3, side // 8, side // 8, generator=_generator())
    image = nn.functional.interpolate(low, scale_factor=8, mode='bilinear')
    image = (image + torch.rand(image.shape, generator=_generator()) / 10).clamp(0, 1)
    result: dict[str, Any] = {'within': True}
    for name, strength, limit in (
        ('geometry', 0.0, GEOMETRY),
        ('photometric', 1.0, PHOTOMETRIC),
    ):
        crops = MultiCrop(
            size, size // 2, 4, mean=(0.0,), std=(1.0,), strength=strength
        )
        both = []
        for where in (torch.device('cpu'), device):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                both.append(crops.to(where)(image.to(where)))
        gaps = [
            (one.cpu() - other.cpu()).abs() for one, other in zip(*both, strict=True)
        ]
        largest = max(gap.max().item() for gap in gaps)
        result[name] = {
            'largest_global': gaps[0].max().item(),
            'largest_local': gaps[1].max().item(),
            'mean_global': gaps[0].mean().item(),
            'tolerance': limit,
        }
        result['within'] &= largest <= limit
    return result


def functions(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Feed targets and losses float64, float32 and bfloat16 logits.

    For each: float32 against float64; bfloat16 against the same numbers as float32; and
    bfloat16 against the float32 numbers before rounding, which is only reported.
    """
    images, prototypes, grid = (4, 64, (4, 4)) if tiny else (32, 65536, (16, 16))
    generator = _generator()

    def draw(*shape: int) -> Tensor:
        # As large as a cosine between unit vectors of width 256.
        return (torch.randn(shape, generator=generator) / 16).to(device)

    target = sinkhorn_knopp(draw(2 * images, prototypes), 0.07).unflatten(0, (2, -1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mask = block_masks(2 * images, grid, 0.5, (0.1, 0.3)).to(device)
    count = int(mask.sum())
    patches = sinkhorn_knopp(draw(count, prototypes), 0.07)

    def dino(logits: Tensor) -> Tensor:
        return torch.stack(dino_loss(logits[2:], logits[:2], target))

    cases: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        'sinkhorn_knopp': (lambda x: sinkhorn_knopp(x, 0.04), draw(count, prototypes)),
        'dino_loss': (dino, draw(10, images, prototypes)),
        'ibot_loss': (lambda x: ibot_loss(x, patches, mask), draw(count, prototypes)),
    }
    result: dict[str, Any] = {'prototypes': prototypes, 'within': True}
    for name, (function, logits) in cases.items():
        rounded = logits.bfloat16()
        value, half = function(logits), function(rounded)
        found = {
            'float32': deviation(value, function(logits.double())),
            'same_numbers': deviation(half, function(rounded.float())),
            'rounded': deviation(half, value),
        }
        if name != 'sinkhorn_knopp':
            found['gradient_same_numbers'] = deviation(
                _slope(function, rounded), _slope(function, rounded.float())
            )
        result[name] = found
        within = found['float32'] <= STEP and found['same_numbers'] <= SAME
        result['within'] &= within
    return result


def _slope(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    logits = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(logits).sum(), logits)
    return gradient


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
