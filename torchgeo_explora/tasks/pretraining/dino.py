"""D-ExPLoRA: extended DINOv2 pre-training."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from peft import PeftConfig
from torch import nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora.augment import MultiCrop
from torchgeo_explora.models import ViT
from torchgeo_explora.objectives import DINOv2
from torchgeo_explora.tasks.pretraining.base import PretrainingTask
from torchgeo_explora.tasks.run.adaptation import choose_adapter, plain_arguments


class ExploraDinoTask(PretrainingTask):
    """Adapt a ViT to unlabelled images with DINOv2's objective and a small delta.

    Khanna et al., *ExPLoRA* (https://arxiv.org/abs/2406.10973). The defaults are the
    paper's D-[24]-r64 for a ViT-L: one unfrozen block, all norms, LoRA of rank 64 on
    the queries and values of the others. What differs from the authors' code: time is
    counted in optimizer steps, and the rate follows the effective batch with
    accumulation counted, so that the micro-batch changes neither.
    """

    letter = 'D'
    objective: DINOv2

    def __init__(
        self,
        model: str = 'vit_large_patch14_dinov2',
        # bool first: a command line's `true` is no name.
        weights: bool | WeightsEnum | str | None = True,
        in_channels: int = 3,
        image_size: int = 224,
        local_size: int | None = None,
        local_views: int = 8,
        global_scale: tuple[float, float] = (0.32, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.32),
        strength: float = 1.0,
        unfreeze: Sequence[int] = (-1,),
        norms: bool = True,
        cls_token: bool = True,
        modules: Sequence[str] = (),
        rank: int | None = None,
        alpha: int | None = None,
        adapter: PeftConfig | dict[str, Any] | None = None,
        prototypes: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        head_layers: int = 3,
        base_lr: float = 1e-3,
        min_lr: float = 1e-6,
        warmup: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        clip: float = 3.0,
        freeze_prototypes: float = 0.015,
        teacher_momentum: tuple[float, float] = (0.994, 1.0),
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        temperature_warmup: float = 0.15,
        ibot_weight: float = 1.0,
        koleo_weight: float = 0.1,
        mask_probability: float = 0.5,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        augmentations: nn.Module | None = None,
        value_range: tuple[Any, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        drop_path: float = 0.0,
        model_args: dict[str, Any] | None = None,
        frozen_dtype: Literal['float32', 'bfloat16'] = 'float32',
        checkpointing: bool = False,
        compiled: bool = False,
        seed: int = 0,
    ) -> None:
        """Build the adapted student, its twin teacher and the head.

        Args:
            model: Name of a timm VisionTransformer.
            weights: True for timm's pre-trained weights, a weights enum or its name, a
                path to a checkpoint, or None for random weights.
            in_channels: Channels of the images.
            image_size: Size of the global crops, in pixels.
            local_size: Size of the local crops; the multiple of the patch nearest to
                98 / 224 of *image_size* if None.
            local_views: V, local crops of an image.
            global_scale: Range of a global crop's share of the image's area.
            local_scale: Likewise of a local crop.
            strength: Of the photometric augmentation: 1 is DINOv2's, 0 none.
            unfreeze: Indices of the blocks that train whole; negative ones count from
                the end.
            norms: Whether all normalisation layers train.
            cls_token: Whether the class token trains.
            modules: Names of modules or parameters that train whole besides.
            rank: Rank of the default LoRA on q and v (64 if None); 0 for no adapter.
            alpha: LoRA scaling is alpha / rank (alpha 1 if None, as the authors have).
            adapter: Any PEFT config instead of the default LoRA; then neither *rank*
                nor *alpha* may be given.
            prototypes: K, outputs of the head.
            hidden_dim: Width of the head's hidden layers.
            bottleneck_dim: Width before the prototypes.
            head_layers: Linear layers before the prototypes.
            base_lr: Rate for an effective batch of 1024; the rate in use is this times
                sqrt(effective batch / 1024).
            min_lr: Rate at the end of the cosine.
            warmup: Share of the run with a linear warm-up.
            betas: AdamW's coefficients.
            weight_decay: AdamW's weight decay.
            clip: Largest gradient norm, of backbone and head separately.
            freeze_prototypes: Share of the run in which the prototypes stay still.
            teacher_momentum: Momentum at the start and at the end.
            teacher_temperature: Temperature at the start and after its warm-up.
            temperature_warmup: Share of the run over which it rises.
            ibot_weight: Weight of the masked-patch term.
            koleo_weight: Weight of KoLeo; 0 leaves it out.
            mask_probability: Share of the global crops that are masked.
            mask_ratio: Range of the masked share of such a crop.
            augmentations: Module from (B, C, H, W) in [0, 1] to `Views`, instead of
                DINOv2's.
            value_range: (low, high) of the sensor values, scalars or one per channel;
                found from the data module if None.
            mean: Mean of the normalisation, of values in [0, 1]; the base's if None,
                averaged over its channels where there are not three.
            std: Standard deviation, likewise.
            drop_path: Drop-path rate of the student.
            model_args: Further arguments of the timm model (`embed_dim`, `depth`, ...).
            frozen_dtype: Type in which frozen linear weights are stored. Under
                precision bf16-mixed, bfloat16 halves them and changes no output.
            checkpointing: Whether blocks keep their input alone for the gradient and
                work twice: far less memory, about a third more time.
            compiled: Whether the blocks run through torch.compile.
            seed: Seed of augmentation, masks and the order of the images.

        Raises:
            ValueError: If *adapter* comes together with *rank* or *alpha*, *base_lr* is
                not positive, or *local_size* is not a multiple of the patch.
        """
        self.weights = weights
        self.adapter = choose_adapter(adapter, rank, alpha)
        self.base_lr = base_lr
        self.min_lr = min_lr
        self.warmup = warmup
        self.betas = betas
        self.weight_decay = weight_decay
        self.freeze_prototypes = freeze_prototypes
        self.value_range = value_range
        self.seed = seed
        # A tuple hides the module: none may be assigned before `Module.__init__`.
        self._augmentations = (augmentations,)
        super().__init__()
        self.save_hyperparameters(plain_arguments(weights, adapter))

    def configure_models(self) -> None:
        """Build backbone, delta and objective."""
        hparams = self.hparams
        self.image_size = hparams['image_size']
        student = ViT(
            hparams['model'],
            self.weights,
            in_channels=hparams['in_channels'],
            image_size=hparams['image_size'],
            drop_path_rate=hparams['drop_path'],
            **(hparams['model_args'] or {}),
        )
        # Copied with the backbone otherwise, into the teacher too.
        mask_token, student.rest = student.rest.get('mask_token'), {}
        self.adapt_student(student, hparams['modules'])
        (augmentations,) = self._augmentations
        if augmentations is None:
            size, patch = hparams['image_size'], student.patch_size
            local = hparams['local_size'] or patch * max(
                1, round(size * 98 / 224 / patch)
            )
            if local % patch:
                raise ValueError(
                    f'*local_size* {local} is not a multiple of the patch size {patch}:'
                    f' use {patch * max(1, round(local / patch))}'
                )
            augmentations = MultiCrop(
                global_size=size,
                local_size=local,
                local_views=hparams['local_views'],
                global_scale=tuple(hparams['global_scale']),
                local_scale=tuple(hparams['local_scale']),
                strength=hparams['strength'],
                mean=self.mean,
                std=self.std,
            )
        self.objective = DINOv2(
            student,
            augmentations,
            prototypes=hparams['prototypes'],
            hidden_dim=hparams['hidden_dim'],
            bottleneck_dim=hparams['bottleneck_dim'],
            head_layers=hparams['head_layers'],
            teacher_temperature=tuple(hparams['teacher_temperature']),
            temperature_warmup=hparams['temperature_warmup'],
            momentum=tuple(hparams['teacher_momentum']),
            ibot_weight=hparams['ibot_weight'],
            koleo_weight=hparams['koleo_weight'],
            mask_probability=hparams['mask_probability'],
            mask_ratio=tuple(hparams['mask_ratio']),
            mask_token=mask_token,
            clip=hparams['clip'],
        )

    def scaled_lr(self, effective_batch: int) -> float:
        """Return base_lr * sqrt(effective batch / 1024)."""
        return self.base_lr * math.sqrt(effective_batch / 1024)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the delta and the head; its last layer, still at first, apart."""
        prototypes = list(self.objective.head.prototypes.parameters())
        apart = {id(parameter) for parameter in prototypes}
        (group,) = super().parameter_groups()
        group['params'] = [p for p in group['params'] if id(p) not in apart]
        return [group, {'params': prototypes, 'still': self.freeze_prototypes}]

    def configure_optimizers(self) -> Any:
        """Plan the run, and give the objective its number of steps."""
        plan = super().configure_optimizers()
        self.objective.steps = self.planned_steps
        return plan
