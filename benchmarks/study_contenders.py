"""What the study compares: settings by name, over those that all have in common."""

from typing import Any, NamedTuple

from peft import LoraConfig, OFTConfig, PeftConfig

from torchgeo_explora.tasks import ExploraDinoTask, ExploraMAETask

BATCH = 64
COMMON: dict[str, Any] = {
    'recipe': 'short',
    'model': 'vit_tiny_patch16_224',
    'image_size': 64,
    'views': {
        'local_size': 32,
        'local_views': 4,
        'global_scale': (0.25, 1.0),
        'local_scale': (0.1, 0.4),
        'strength': 0.5,
    },
}
FULL: dict[str, Any] = {'rank': 0, 'modules': ('',), 'base_lr': 2e-3}


class Contender(NamedTuple):
    """A way to adapt.

    Attributes:
        steps: Optimizer steps, of 64 images each.
        settings: Arguments of the task; those of `ExploraDinoTask` come over `COMMON`.
        share: Of the training images, alike in each class.
        classes: Only the images of the first so many classes; all if None.
        measured: Steps to measure after, beside the start and the end.
        task: Has the objective.
    """

    steps: int
    settings: dict[str, Any]
    share: float = 1.0
    classes: int | None = None
    measured: tuple[int, ...] = (25, 50, 62, 100, 200, 300)
    task: type[ExploraDinoTask | ExploraMAETask] = ExploraDinoTask


def _lora(rank: int, layers: str | list[str], alpha: int | None = None) -> PeftConfig:
    """Return LoRA; by default its scale is that of *short*, alpha = 4 r."""
    return LoraConfig(r=rank, lora_alpha=alpha or 4 * rank, target_modules=layers)


#: Compared over the same number of images: how fast, and how far.
TIME = {
    # The paper's adapter, temperatures, bottleneck, momentum and rate.
    'paper': Contender(
        400,
        {
            'recipe': 'paper',
            'rank': 64,
            'base_lr': 1e-3,
            'objective': {'prototypes': 4096},
        },
    ),
    # What configs/pretrain/eurosat_rgb_vit_tiny_cpu.yaml has.
    'recipe': Contender(
        400,
        {
            'recipe': 'paper',
            'rank': 16,
            'base_lr': 2e-3,
            'objective': {
                'prototypes': 512,
                'hidden_dim': 512,
                'bottleneck_dim': 64,
                'teacher_temperature': (0.02, 0.03),
                'momentum': (0.98, 1.0),
            },
        },
    ),
    'block alone': Contender(400, {'rank': 0}),
    'lora alone': Contender(400, {'unfreeze': ()}),
    'short': Contender(400, {}),
    # The best of the ideas below, at this length.
    'short, momentum of 0.9': Contender(400, {'objective': {'momentum': (0.9, 0.9)}}),
    # A quarter of the rank at twice the rate.
    'rank 16': Contender(400, {'adapter': _lora(16, 'all-linear'), 'base_lr': 7.8e-3}),
    # Everything trains, with the head, temperatures and momentum of *short*.
    'full': Contender(400, FULL),
    'full, half the rate': Contender(400, FULL | {'base_lr': 1e-3}),
    'full, twice the rate': Contender(400, FULL | {'base_lr': 4e-3}),
}


_QV = ['q', 'v']
_SHORT = 100
#: One change each, in the order of the paper's tables.
_CHANGES: dict[str, dict[str, Any]] = {
    'short run': {},
    'block [12] alone': {'rank': 0},
    'blocks [11,12] alone': {'rank': 0, 'unfreeze': (-2, -1)},
    'LoRA r8 on Q, V alone': {'unfreeze': (), 'adapter': _lora(8, _QV)},
    'LoRA r64 on Q, V alone': {'unfreeze': (), 'adapter': _lora(64, _QV)},
    'LoRA r64 on all alone': {'unfreeze': ()},
    '[12]-r16 on all': {'adapter': _lora(16, 'all-linear')},
    '[12]-r8 on Q, V': {'adapter': _lora(8, _QV)},
    '[12]-r16 on Q, V': {'adapter': _lora(16, _QV)},
    '[12]-r32 on Q, V': {'adapter': _lora(32, _QV)},
    '[12]-r64 on Q, V': {'adapter': _lora(64, _QV)},
    '[12]-r64 on Q, V, alpha 1': {'adapter': _lora(64, _QV, 1)},
    '[12]-r64 on Q, V, norms frozen': {'adapter': _lora(64, _QV), 'norms': False},
    '[1]-r64 on Q, V': {'adapter': _lora(64, _QV), 'unfreeze': (0,)},
    '[7]-r64 on Q, V': {'adapter': _lora(64, _QV), 'unfreeze': (6,)},
    '[11]-r64 on Q, V': {'adapter': _lora(64, _QV), 'unfreeze': (-2,)},
    '[1,12]-r64 on Q, V': {'adapter': _lora(64, _QV), 'unfreeze': (0, -1)},
    '[1,11,12]-r64 on Q, V': {'adapter': _lora(64, _QV), 'unfreeze': (0, -2, -1)},
    'DoRA r64 on all': {
        'adapter': LoraConfig(
            r=64, lora_alpha=256, target_modules='all-linear', use_dora=True
        )
    },
    'OFT on Q, V': {'adapter': OFTConfig(oft_block_size=16, target_modules=_QV)},
    'everything': FULL,
    'everything, from scratch': FULL | {'weights': False},
}
ABLATION = {
    name: Contender(_SHORT, change, measured=()) for name, change in _CHANGES.items()
}

_UPPER = LoraConfig(
    r=64,
    lora_alpha=256,
    target_modules=['q', 'k', 'v', 'proj', 'fc1', 'fc2'],
    layers_to_transform=[*range(6, 12)],
    layers_pattern='blocks',
)
#: Ideas for a better recipe, each as one change of *short run*.
_IDEAS: dict[str, dict[str, Any]] = {
    'no KoLeo': {'objective': {'koleo_weight': 0.0}},
    'SIGReg instead of KoLeo': {'objective': {'spread': 'sigreg'}},
    'no masked patches': {'objective': {'ibot_weight': 0.0}},
    'Gram anchoring': {'objective': {'gram_weight': (1.0, 1.0)}},
    'momentum of 0.8 to 0.99': {'objective': {'momentum': (0.8, 0.99)}},
    'momentum of 0.9': {'objective': {'momentum': (0.9, 0.9)}},
    '128 prototypes': {'objective': {'prototypes': 128}},
    '2,048 prototypes': {'objective': {'prototypes': 2048}},
    'quarter turns': {'views': COMMON['views'] | {'overhead': True}},
    'all of the colour changes': {'views': COMMON['views'] | {'strength': 1.0}},
    '8 local views': {'views': COMMON['views'] | {'local_views': 8}},
    # What a task has that is told nothing about views.
    'views by default': {'views': {'local_size': 32}},
    # Nothing trains in the lower half, which then needs no backward pass.
    'upper half alone': {'adapter': _UPPER, 'norms': False, 'cls_token': False},
}
IDEAS = {
    name: Contender(_SHORT, change, measured=()) for name, change in _IDEAS.items()
}

#: Fewer of the 7,000 images, seen more often.
IMAGES = {
    f'{round(7000 * share):,} images': Contender(400, {}, share)
    for share in (1 / 100, 1 / 14, 1 / 2)
}

_LARGER = {'image_size': 128, 'views': COMMON['views'] | {'local_size': 48}}
#: Whether what holds at 64 pixels holds for larger images.
LARGER = {
    '128 px': Contender(_SHORT, _LARGER, measured=(25, 50, 62)),
    '128 px, full': Contender(_SHORT, FULL | _LARGER, measured=(25, 50, 62)),
}

_SMALL = {
    'model': 'vit_small_patch14_dinov2.lvd142m',
    'image_size': 56,
    'views': COMMON['views'] | {'local_size': 28},
}
#: Whether what holds for the ViT-Ti holds for DINOv2's ViT-S, whose file is --weights.
WIDER = {
    # The rate of *short* for a ViT-Ti.
    'DINOv2 ViT-S': Contender(400, _SMALL | {'base_lr': 3.9e-3}),
    # That of *short* for this width.
    'DINOv2 ViT-S, a quarter of the rate': Contender(400, _SMALL),
    'DINOv2 ViT-S, full': Contender(400, FULL | _SMALL),
    'DINOv2 ViT-S, full, a quarter of the rate': Contender(
        400, FULL | _SMALL | {'base_lr': 5e-4}
    ),
}
#: Those of another base, or of larger images.
ELSEWHERE = LARGER | WIDER

#: Learning rates for a wider base, that of DINOv2 above.
RATES = {
    f'ViT-S{name}, {rate:g}': Contender(
        _SHORT, settings | _SMALL | {'base_lr': rate}, measured=(25, 50)
    )
    for name, settings, rates in (
        ('', {}, (5e-3, 2.5e-3, 1.25e-3, 6.25e-4)),
        (' full', FULL, (2e-3, 1e-3, 5e-4, 2.5e-4)),
    )
    for rate in rates
}

# The delta of *short*, with a decoder for pixels instead of DINOv2's head.
_MAE: dict[str, Any] = {
    'model': COMMON['model'],
    'image_size': 64,
    'adapter': _lora(64, 'all-linear'),
    'unfreeze': (-1,),
    'base_lr': 4e-3,
    'objective': {'decoder_dim': 128, 'decoder_depth': 2, 'decoder_heads': 4},
}
#: DINOv2's objective against MAE's.
OBJECTIVES = {
    "MAE's objective": Contender(400, _MAE, task=ExploraMAETask),
    "MAE's objective, a tenth of the rate": Contender(
        400, _MAE | {'base_lr': 4e-4}, task=ExploraMAETask
    ),
    # The delta of configs/pretrain/eurosat_rgb_mae_vit_tiny_cpu.yaml.
    "MAE's objective, r16 on Q, V": Contender(
        400,
        _MAE | {'adapter': None, 'rank': 16, 'schedule': {'warmup': 0.05}},
        task=ExploraMAETask,
    ),
}

#: Other questions.
OTHERS = {'half of the classes': Contender(400, {}, classes=5)}

CONTENDERS = TIME | IMAGES | ELSEWHERE | RATES | OBJECTIVES | OTHERS | ABLATION | IDEAS
