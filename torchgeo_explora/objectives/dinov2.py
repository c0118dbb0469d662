"""DINOv2's objective: self-distillation, masked patches and evenly spread features."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from torchgeo_explora.adapt import ema_update_, twin
from torchgeo_explora.checks import require_positive, require_range, require_share
from torchgeo_explora.functional import (
    block_masks,
    cosine_schedule,
    dino_loss,
    ibot_loss,
    koleo,
    linear_warmup,
    replace_tokens,
    sinkhorn_knopp_,
)
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.heads.dino import DINOHead
from torchgeo_explora.objectives.objective import Objective


@dataclass(frozen=True)
class DINOv2Options:
    """Options of `DINOv2`; the defaults are those of its ViT-L.

    Args:
        prototypes: K, outputs of the head.
        hidden_dim: Width of the head's hidden layers.
        bottleneck_dim: Width before the prototypes.
        head_layers: Linear layers before the prototypes.
        freeze_prototypes: Share of the run in which the prototypes stay still.
        temperature: Student temperature.
        teacher_temperature: Teacher temperature at the start and after its warm-up.
        temperature_warmup: Share of the run over which it rises linearly.
        momentum: Teacher momentum at the start and at the end (cosine).
        ibot_weight: Weight of the masked-patch term.
        koleo_weight: Weight of KoLeo, on each of the two global crops; 0 leaves it out.
        mask_probability: Share of the global crops that are masked.
        mask_ratio: Range of the masked share of such a crop.
        clip: Largest gradient norm, of the backbone and of the head separately.
    """

    prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    head_layers: int = 3
    freeze_prototypes: float = 0.015
    temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    temperature_warmup: float = 0.15
    momentum: tuple[float, float] = (0.994, 1.0)
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    clip: float = 3.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ('prototypes', 'hidden_dim', 'bottleneck_dim', 'head_layers'):
            require_positive(name, getattr(self, name))
        for name in ('temperature', 'clip'):
            require_positive(name, getattr(self, name))
        for temperature in self.teacher_temperature:
            require_positive('teacher_temperature', temperature)
        for name in ('ibot_weight', 'koleo_weight'):
            require_positive(name, getattr(self, name), or_zero=True)
        require_share('freeze_prototypes', self.freeze_prototypes)
        require_share('temperature_warmup', self.temperature_warmup)
        require_share('mask_probability', self.mask_probability)
        require_range('momentum', self.momentum)
        require_range('mask_ratio', self.mask_ratio)


class DINOv2(Objective):
    """DINO and iBOT with one shared head, Sinkhorn-Knopp targets and KoLeo.

    Oquab et al., *DINOv2* (https://arxiv.org/abs/2304.07193); scales, order and
    schedules are those of the reference implementation. What differs: the teacher
    shares every frozen tensor with the student, so that its moving average covers
    only what trains; Sinkhorn-Knopp subtracts the largest logit of all ranks, which
    leaves its result unchanged and cannot overflow. Of groups of bands, all tokens of a
    place are hidden together: none gives away the others.

    The student must be adapted *before* it comes here: the teacher is its twin.

    Args:
        student: Backbone whose trainable parameters are the delta.
        augment: Module from (B, C, H, W) in [0, 1] to `Views`.
        mask_token: (D,) embedding that replaces a masked patch; zeros if None, as in
            DINOv2's released S, B and L weights. It does not train.
        steps: Optimizer steps planned: the resolution of the warm-up.
        **options: Fields of `DINOv2Options`.
    """

    pooling = 'cls'

    def __init__(
        self,
        student: Backbone,
        augment: nn.Module | None = None,
        mask_token: Tensor | None = None,
        steps: int = 6250,
        **options: Any,
    ) -> None:
        """Build the heads and the teacher around *student*."""
        super().__init__()
        self.options = DINOv2Options(**options)
        width = student.embed_dim
        self.student = student
        self.head = DINOHead(
            width,
            self.options.prototypes,
            self.options.hidden_dim,
            self.options.bottleneck_dim,
            layers=self.options.head_layers,
        )
        self.teacher = twin(student)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        if mask_token is None:
            mask_token = torch.zeros(width)
        self.mask_token = nn.Parameter(mask_token.reshape(width), requires_grad=False)
        self.augment = augment
        self.temperature = self.options.temperature
        self.teacher_temperature = self.options.teacher_temperature
        self.temperature_warmup = self.options.temperature_warmup
        self.momentum = self.options.momentum
        self.ibot_weight = self.options.ibot_weight
        self.koleo_weight = self.options.koleo_weight
        self.mask_probability = self.options.mask_probability
        self.mask_ratio = self.options.mask_ratio
        self.clip = self.options.clip
        self.steps = steps
        self.diagnostics = {}
        self.train()

    @property
    def pretrained(self) -> Backbone:
        """The teacher."""
        return self.teacher

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the teacher, which stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        self.teacher_head.eval()
        return self

    def forward(self, batch: Mapping[str, Any], progress: float) -> dict[str, Tensor]:
        """Augment, mask and compare: see `Objective.forward`."""
        if self.augment is None:
            raise ValueError(
                'DINOv2 was built without *augment*: call `terms` on views'
            )
        views = self.augment(batch['image'])
        _, images, _, height, width = views.global_.shape
        patch = self.student.patch_size
        mask = block_masks(
            2 * images,
            (height // patch, width // patch),
            self.mask_probability,
            self.mask_ratio,
        ).repeat(1, self.student.layers)
        temperature = self.temperature_at(progress)
        terms = self.terms(views.global_, views.local, mask, temperature)
        self.diagnostics |= {
            'momentum': torch.tensor(self.momentum_at(progress)),
            'teacher_temperature': torch.tensor(temperature),
        }
        return terms

    def terms(
        self, global_: Tensor, local: Tensor, mask: Tensor, temperature: float
    ) -> dict[str, Tensor]:
        """Return the weighted terms for given views and masks.

        Args:
            global_: Two global crops of each image, (2, B, C, H, W), normalised.
            local: Local crops, (V, B, C, h, w), normalised; V may be 0.
            mask: (2 * B, N) bool, True where the student sees the mask token. Rows
                are ordered as `global_.flatten(0, 1)`. On any device: on the CPU,
                nothing waits for an accelerator.
            temperature: Teacher temperature.
        """
        images = global_.shape[1]
        crops = global_.flatten(0, 1)  # (2, B, ...) -> (2 * B, ...)
        with torch.no_grad():
            seen = self.teacher(crops, wanted=mask)
            vectors = torch.cat([seen.cls, seen.patch])
            # Float32 for the exponentials, whatever the autocast type.
            target = self.teacher_head(vectors).float()
            views = len(seen.cls)
            cls_target = sinkhorn_knopp_(target[:views].clone(), temperature)
            patch_target = sinkhorn_knopp_(target[views:], temperature)

        tokens = self.student.embed(crops)
        hidden = mask.to(crops.device, non_blocking=True)
        content = replace_tokens(tokens.content, hidden, self.mask_token)
        features = self.student.encode(content, tokens.position, wanted=mask)
        rows = [features.cls, features.patch]
        if len(local):
            small = local.flatten(0, 1)
            patches = math.prod(
                side // self.student.patch_size for side in small.shape[2:]
            )
            tokens_each = self.student.layers * patches
            none = torch.zeros(len(small), tokens_each, dtype=torch.bool)
            rows.append(self.student(small, wanted=none).cls)
        # Their logits are never kept: the losses make them, slice by slice.
        vectors = self.head.bottleneck(torch.cat(rows))
        global_rows, patch_rows, local_rows = vectors.split(
            [len(features.cls), len(features.patch), len(local) * images]
        )
        prototypes = self.head.prototypes.weight()
        ibot = ibot_loss(patch_rows, patch_target, mask, self.temperature, prototypes)
        # The largest matrix of a step: gone before the next loss keeps its gradient.
        del target, patch_target
        local_term, global_term = dino_loss(
            local_rows.unflatten(0, (len(local), images)),
            global_rows.unflatten(0, (2, images)),
            cls_target.unflatten(0, (2, images)),
            self.temperature,
            prototypes,
        )
        terms = {'dino_global': global_term, 'ibot': self.ibot_weight * ibot}
        if len(local):
            terms['dino_local'] = local_term
        if self.koleo_weight:
            first, second = (koleo(cls) for cls in features.cls.chunk(2))
            terms['koleo'] = self.koleo_weight * (first + second)
        self.diagnostics = self._diagnose(seen.cls, cls_target)
        return terms

    @staticmethod
    @torch.no_grad()
    def _diagnose(features: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return what shows a collapse: both fall to 0, or entropy to log K."""
        unit = nn.functional.normalize(features.float(), dim=-1)
        return {
            # 1 / sqrt(D) for features spread evenly over the sphere.
            'feature_std': unit.std(dim=0).mean(),
            'target_entropy': torch.special.entr(target).sum(-1).mean(),
        }

    def temperature_at(self, progress: float) -> float:
        """Return the teacher temperature at *progress*."""
        return linear_warmup(
            round(progress * self.steps),
            int(self.temperature_warmup * self.steps),
            *self.teacher_temperature,
        )

    def momentum_at(self, progress: float) -> float:
        """Return the teacher momentum at *progress*."""
        return cosine_schedule(round(progress * self.steps), self.steps, *self.momentum)

    def before_step(self, progress: float) -> dict[str, Tensor]:
        """Clip the gradients of the backbone and of the head, each by its own norm."""
        return {
            name: nn.utils.clip_grad_norm_(module.parameters(), self.clip)
            for name, module in (('backbone', self.student), ('head', self.head))
        }

    def after_step(self, progress: float) -> None:
        """Move the teacher's delta and head towards the student's."""
        momentum = self.momentum_at(progress)
        ema_update_(self.teacher, self.student, momentum)
        ema_update_(self.teacher_head, self.head, momentum)
