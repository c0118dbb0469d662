"""DINOv2's objective: self-distillation, masked patches and evenly spread features."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import torch
from peft import PeftConfig
from torch import Tensor, nn

from torchgeo_explora.adapt import (
    delta_state_dict,
    ema_update_,
    exchange_adapter,
    frozen_base,
    twin,
)
from torchgeo_explora.checks import require_positive, require_range, require_share
from torchgeo_explora.functional import (
    block_masks,
    cosine_schedule,
    dino_loss,
    ibot_loss,
    linear_warmup,
    replace_tokens,
    sinkhorn_knopp_,
)
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.tokens import Features
from torchgeo_explora.models.heads.dino import DINOHead
from torchgeo_explora.objectives.objective import Objective
from torchgeo_explora.objectives.terms.gram import gram_term
from torchgeo_explora.objectives.terms.guides import Guide, Guides
from torchgeo_explora.objectives.terms.spread import koleo_term, sigreg_term
from torchgeo_explora.objectives.terms.whitening import whiten_


@dataclass(frozen=True)
class HeadOptions:
    """Sizes of a projection head; the defaults are those of DINOv2's ViT-L.

    Args:
        prototypes: K, outputs of the head.
        hidden_dim: Width of the head's hidden layers.
        bottleneck_dim: Width before the prototypes.
        head_layers: Linear layers before the prototypes.
    """

    prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    head_layers: int = 3

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ('prototypes', 'hidden_dim', 'bottleneck_dim', 'head_layers'):
            require_positive(name, getattr(self, name))

    def build(self, width: int) -> DINOHead:
        """Return a head for tokens of *width*."""
        return DINOHead(
            width,
            self.prototypes,
            self.hidden_dim,
            self.bottleneck_dim,
            layers=self.head_layers,
        )


@dataclass(frozen=True)
class DINOv2Options(HeadOptions):
    """Options of `DINOv2`; the defaults are those of its ViT-L.

    The fields of `HeadOptions` describe the head of the class tokens, which the masked
    patches share unless *ibot_head* is given.

    Args:
        whiten_head: Whether the first batch sets the last layer before the prototypes,
            so that new heads tell tokens apart.
        freeze_prototypes: Share of the run, at its start, in which the prototypes are
            frozen.
        temperature: Student temperature.
        teacher_temperature: Teacher temperature at the start and after its warm-up.
        temperature_warmup: Share of the run over which the teacher temperature rises
            linearly.
        momentum: Teacher momentum at the start and at the end (cosine).
        ibot_weight: Weight of the masked-patch term.
        ibot_head: Sizes of a separate head for the masked patches, as in DINOv3, where
            that of the 7B model has 98,304 prototypes, hidden width 4096 and bottleneck
            384; None for the shared head.
        spread: Term that spreads the class tokens: 'koleo' uses distances between the
            images on a device, 'sigreg' compares random projections with a normal
            distribution, for which one image per device is enough.
        koleo_weight: Weight of KoLeo, on each of the two global crops; 0 leaves it out.
        sigreg_weight: Weight of SIGReg, in the same way.
        sigreg_directions: Number of random projections of SIGReg.
        gram_weight: Weight of Gram anchoring to the frozen base at the start and at the
            end (cosine); if both are 0, there is none. DINOv3 goes from 0 to 2.
        gram_scale: Size of the anchor's view, relative to the student's.
        guides: Metadata that the class token should encode, or should not.
        mask_probability: Share of the global crops that are masked.
        mask_ratio: Range of the share of patches that are masked in such a crop.
        clip: Largest gradient norm, separately for the backbone, each head and the
            guides.
    """

    whiten_head: bool = False
    freeze_prototypes: float = 0.015
    temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    temperature_warmup: float = 0.15
    momentum: tuple[float, float] = (0.994, 1.0)
    ibot_weight: float = 1.0
    ibot_head: HeadOptions | None = None
    spread: Literal['koleo', 'sigreg'] = 'koleo'
    koleo_weight: float = 0.1
    sigreg_weight: float = 0.05
    sigreg_directions: int = 1024
    gram_weight: tuple[float, float] = (0.0, 0.0)
    gram_scale: int = 2
    guides: Sequence[Guide] = ()
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    clip: float = 3.0

    def __post_init__(self) -> None:
        """Check the ranges; build nested options from the mappings of a file."""
        super().__post_init__()
        if isinstance(self.ibot_head, Mapping):
            object.__setattr__(self, 'ibot_head', HeadOptions(**self.ibot_head))
        guides = (Guide(**g) if isinstance(g, Mapping) else g for g in self.guides)
        object.__setattr__(self, 'guides', tuple(guides))
        for name in ('temperature', 'clip', 'sigreg_directions', 'gram_scale'):
            require_positive(name, getattr(self, name))
        if self.spread not in ('koleo', 'sigreg'):
            raise ValueError(f"*spread* is {self.spread!r}: choose 'koleo' or 'sigreg'")
        for temperature in self.teacher_temperature:
            require_positive('teacher_temperature', temperature)
        for name in ('ibot_weight', 'koleo_weight', 'sigreg_weight'):
            require_positive(name, getattr(self, name), or_zero=True)
        for weight in self.gram_weight:
            require_positive('gram_weight', weight, or_zero=True)
        require_share('freeze_prototypes', self.freeze_prototypes)
        require_share('temperature_warmup', self.temperature_warmup)
        require_share('mask_probability', self.mask_probability)
        require_range('momentum', self.momentum)
        require_range('mask_ratio', self.mask_ratio)

    @property
    def anchored(self) -> bool:
        """Whether there is Gram anchoring."""
        return any(self.gram_weight)


class DINOv2(Objective):
    """DINO and iBOT, Sinkhorn-Knopp targets and KoLeo; options from DINOv3 and FINO.

    Oquab et al., *DINOv2* (https://arxiv.org/abs/2304.07193), with the scales, order
    and schedules of the reference implementation. Differences: the teacher shares every
    frozen tensor with the student, so its moving average covers only what is trained;
    Sinkhorn-Knopp subtracts the largest logit of all ranks first, which does not change
    its result and prevents overflow. With groups of bands, all tokens of a place are
    hidden together, so that none gives away the others.

    Adapt the student *before* building the objective: the teacher is its twin. Gram
    anchoring (DINOv3, https://arxiv.org/abs/2508.10104) keeps the student near its
    frozen base, where DINOv3 uses an earlier teacher. For FINO's guides, see `Guides`.

    Args:
        student: Backbone whose trainable parameters are the delta.
        augment: Module from (B, C, H, W) in [0, 1] to `Views`.
        mask_token: (D,) embedding that replaces a masked patch; zeros if None, as in
            DINOv2's released S, B and L weights. It is not trained.
        steps: Optimizer steps planned: the resolution of the schedules.
        **options: Fields of `DINOv2Options`.
    """

    pooling = 'cls'
    #: Whether the heads have been whitened; stored in checkpoints.
    whitened: Tensor

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
        self._build_heads(width)
        self.teacher = twin(student)
        self.anchor = frozen_base(student) if self.options.anchored else None
        self.guides = (
            Guides(self.options.guides, width) if self.options.guides else None
        )
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
        self.sigreg_weight = self.options.sigreg_weight
        self.gram_weight = self.options.gram_weight
        self.mask_probability = self.options.mask_probability
        self.mask_ratio = self.options.mask_ratio
        self.clip = self.options.clip
        self.steps = steps
        self.diagnostics = {}
        self.train()

    def _build_heads(self, width: int) -> None:
        options = self.options
        self.head = options.build(width)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.ibot_head = self.teacher_ibot_head = None
        if options.ibot_head is not None:
            self.ibot_head = options.ibot_head.build(width)
            frozen = copy.deepcopy(self.ibot_head).requires_grad_(False)
            self.teacher_ibot_head = frozen
        if options.whiten_head:
            self.register_buffer('whitened', torch.tensor(False))
        elif hasattr(self, 'whitened'):
            del self.whitened

    def take(self, options: DINOv2Options) -> None:
        """Change the options before training, with new heads if their sizes differ.

        Heads that are kept are only whitened if the old options say so. An attribute
        that was set on the objective itself is kept if old and new options agree on it.
        """
        sizes = [field.name for field in fields(HeadOptions)] + ['ibot_head']
        new = any(getattr(options, n) != getattr(self.options, n) for n in sizes)
        if not new:
            options = replace(options, whiten_head=self.options.whiten_head)
        for field in fields(options):
            value = getattr(options, field.name)
            changed = value != getattr(self.options, field.name)
            if changed and hasattr(self, field.name) and field.name not in sizes:
                setattr(self, field.name, value)
        self.options = options
        if new:
            self._build_heads(self.student.embed_dim)
            self.train(self.training)

    def take_adapter(self, adapter: PeftConfig) -> None:
        """Replace the adapter of student and teacher before training.

        Both stay the same objects, and their outputs do not change.

        Raises:
            ValueError: If the present adapter is not an untrained LoRA, or *adapter*
                does not fit.
        """
        parts = (self.student, self.teacher)
        own, others = (delta_state_dict(part).values() for part in parts)
        if not all(map(torch.equal, own, others)):
            raise ValueError('student and teacher differ, so they have been trained')
        try:
            for part in parts:
                exchange_adapter(part, adapter)
        finally:
            self.teacher.requires_grad_(False)
            ema_update_(self.teacher, self.student, 0.0)
            self.train(self.training)

    @property
    def pretrained(self) -> Backbone:
        """The teacher."""
        return self.teacher

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the trained parts; teacher and anchor stay in eval mode."""
        super().train(mode)
        for part in (
            *(self.teacher, self.teacher_head),
            *(self.teacher_ibot_head, self.anchor),
        ):
            if part is not None:
                part.eval()
        return self

    def forward(self, batch: Mapping[str, Any], progress: float) -> dict[str, Tensor]:
        """Augment, mask and compare: see `Objective.forward`."""
        if self.augment is None:
            raise ValueError(
                'DINOv2 was built without *augment*: call `terms` on views'
            )
        targets = () if self.guides is None else self.guides.targets(batch)
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
        terms = self.terms(
            *(views.global_, views.local, mask, temperature),
            anchor=getattr(views, 'anchor', None),
            guides=targets,
            progress=progress,
        )
        self.diagnostics |= {
            'momentum': torch.tensor(self.momentum_at(progress)),
            'teacher_temperature': torch.tensor(temperature),
        }
        return terms

    def terms(
        self,
        global_: Tensor,
        local: Tensor,
        mask: Tensor,
        temperature: float,
        *,
        anchor: Tensor | None = None,
        guides: Sequence[Tensor] = (),
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """Return the weighted terms for given views and masks.

        Args:
            global_: Two global crops of each image, (2, B, C, H, W), normalised.
            local: Local crops, (V, B, C, h, w), normalised; V may be 0.
            mask: (2 * B, N) bool, True where the student sees the mask token. Rows
                are ordered as `global_.flatten(0, 1)`. It can be on any device; on the
                CPU, nothing waits for an accelerator.
            temperature: Teacher temperature.
            anchor: The anchor's view of the global crops, (2, B, C, A, A), normalised;
                the global crops themselves if None.
            guides: Metadata of each guide, (B,), as `Guides.targets` returns it.
            progress: Sets the weight of Gram anchoring and the strength of guides;
                heads are whitened only at 0.
        """
        images = global_.shape[1]
        crops = global_.flatten(0, 1)  # (2, B, ...) -> (2 * B, ...)
        with torch.no_grad():
            seen = self.teacher(crops, wanted=mask)
            # Read in the first step only, since reading it waits for the device.
            if self.options.whiten_head and not progress and not self.whitened:
                self._whiten(seen)
            cls_target, patch_target = self._targets(seen, temperature)

        tokens = self.student.embed(crops)
        hidden = mask.to(crops.device, non_blocking=True)
        content = replace_tokens(tokens.content, hidden, self.mask_token)
        gram = None
        if self.anchor is None:
            features = self.student.encode(content, tokens.position, wanted=mask)
        else:
            whole = self.student.encode(content, tokens.position)
            view = crops if anchor is None else anchor.flatten(0, 1)
            gram = gram_term(whole.patch, tokens.grid, self.anchor, view)
            features = Features(whole.cls, whole.patch[hidden])
        rows = [features.cls]
        if self.ibot_head is None:
            rows.append(features.patch)
        if len(local):
            small = local.flatten(0, 1)
            patches = math.prod(
                side // self.student.patch_size for side in small.shape[2:]
            )
            tokens_each = self.student.layers * patches
            none = torch.zeros(len(small), tokens_each, dtype=torch.bool)
            rows.append(self.student(small, wanted=none).cls)
        # Their logits are never stored: the losses compute them slice by slice.
        vectors = self.head.bottleneck(torch.cat(rows))
        parts = vectors.split([len(row) for row in rows])
        global_rows = parts[0]
        local_rows = parts[-1] if len(local) else vectors[:0]
        prototypes = self.head.prototypes.weight()
        if self.ibot_head is None:
            patch_rows, patch_prototypes = parts[1], prototypes
        else:
            patch_rows = self.ibot_head.bottleneck(features.patch)
            patch_prototypes = self.ibot_head.prototypes.weight()
        ibot = ibot_loss(
            patch_rows, patch_target, mask, self.temperature, patch_prototypes
        )
        # The largest matrix of a step: freed before the next loss stores its gradient.
        del patch_target
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
        if self.options.spread == 'sigreg':
            if self.sigreg_weight:
                projected = self.head.mlp(features.cls)
                term = sigreg_term(projected, self.options.sigreg_directions)
                terms['sigreg'] = self.sigreg_weight * term
        elif self.koleo_weight:
            terms['koleo'] = self.koleo_weight * koleo_term(features.cls)
        if gram is not None:
            terms['gram'] = self.gram_weight_at(progress) * gram
        if self.guides is not None:
            terms |= self.guides(features.cls, guides, progress)
        self.diagnostics = self._diagnose(seen.cls, cls_target)
        return terms

    def _whiten(self, seen: Features) -> None:
        """Whiten the heads of student and teacher with the base's features."""
        if self.ibot_head is None or self.teacher_ibot_head is None:
            whiten_(self.head, (seen.cls, seen.patch))
        else:
            whiten_(self.head, (seen.cls,))
            whiten_(self.ibot_head, (seen.patch,))
            self.teacher_ibot_head.load_state_dict(self.ibot_head.state_dict())
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.whitened.fill_(True)

    def _targets(self, seen: Features, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the teacher's targets for class tokens and masked patches."""
        views = len(seen.cls)
        # Float32 for the exponentials, whatever the autocast type.
        if self.teacher_ibot_head is None:
            vectors = torch.cat([seen.cls, seen.patch])
            logits = self.teacher_head(vectors).float()
            cls, patch = logits[:views].clone(), logits[views:]
        else:
            cls = self.teacher_head(seen.cls).float()
            patch = self.teacher_ibot_head(seen.patch).float()
        return sinkhorn_knopp_(cls, temperature), sinkhorn_knopp_(patch, temperature)

    @staticmethod
    @torch.no_grad()
    def _diagnose(features: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return signs of a collapse: both fall to 0, or the entropy rises to log K."""
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

    def gram_weight_at(self, progress: float) -> float:
        """Return the weight of Gram anchoring at *progress*."""
        return cosine_schedule(
            round(progress * self.steps), self.steps, *self.gram_weight
        )

    def before_step(self, progress: float) -> dict[str, Tensor]:
        """Clip the gradients of the backbone and of each head, each by its own norm."""
        modules = {
            'backbone': self.student,
            'head': self.head,
            'ibot_head': self.ibot_head,
            'guides': self.guides,
        }
        parts = {
            name: [*module.parameters()]
            for name, module in modules.items()
            if module is not None
        }
        return {
            name: nn.utils.clip_grad_norm_(parameters, self.clip)
            for name, parameters in parts.items()
            # Prototypical guides have no parameters.
            if parameters
        }

    def after_step(self, progress: float) -> None:
        """Move the teacher's delta and heads towards the student's."""
        momentum = self.momentum_at(progress)
        ema_update_(self.teacher, self.student, momentum)
        ema_update_(self.teacher_head, self.head, momentum)
        if self.ibot_head is not None and self.teacher_ibot_head is not None:
            ema_update_(self.teacher_ibot_head, self.ibot_head, momentum)
        if self.guides is not None:
            self.guides.after_step()
