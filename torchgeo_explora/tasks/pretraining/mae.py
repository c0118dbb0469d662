"""M-ExPLoRA: extended masked-autoencoder pre-training."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nan, nn

from torchgeo_explora.adapt import count
from torchgeo_explora.adapt.delta import adapted
from torchgeo_explora.augment import Quantize, SingleCrop
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.objectives import MAE, MAEOptions
from torchgeo_explora.tasks.pretraining.base import PretrainingOptions, PretrainingTask
from torchgeo_explora.tasks.run.adaptation import as_options, plain
from torchgeo_explora.tasks.run.optimizer import Schedule, without_decay
from torchgeo_explora.tasks.run.raw_images import no_data as declared_no_data

#: MAE's schedule: 1 of 200 epochs is warm-up.
SCHEDULE = Schedule(min_lr=0.0, warmup=0.005, betas=(0.9, 0.95))


class ExploraMAETask(PretrainingTask):
    """Adapt a ViT to unlabelled images with MAE's objective and a small delta.

    Khanna et al., *ExPLoRA* (https://arxiv.org/abs/2406.10973). The defaults are the
    paper's M-[24]-r64 for a ViT-L on RGB images. Any other backbone, such as
    `GroupChannelViT` for spectral groups or `TemporalViT` for series, is given as
    *model*, by its class path in a configuration: the backbone decides what its tokens
    are, and the task needs no argument for each kind.

    A decoder that comes with the weights is frozen, except for its norms and LoRA of
    rank *objective.decoder_rank*; without one, a new decoder is trained in full, and
    the start-up line says so. The decoder is discarded afterwards: the delta covers
    only the backbone.

    Differences from the authors' code: time is counted in optimizer steps, and
    parameters that the weights lack (embeddings and codes of another kind of backbone)
    are trained in full without being named.

    Args:
        model: Name of a timm VisionTransformer, a backbone, or its class path.
        objective: Decoder, masks and targets.
        crop_scale: Range of the share of the image's area that a view covers.
        augmentations: Module from (B, C, H, W) in [0, 1], NaN where there is no data,
            to normalised views of one size, instead of MAE's crop.
        base_lr: Learning rate for an effective batch of 256; the rate in use is this
            times effective batch / 256.
        schedule: Warm-up and end of the learning rate, and AdamW's settings; weight
            decay applies to matrices only.
        no_data: Sensor value that means no data where all bands have it; if None, the
            data module's. NaN always means no data. Such pixels do not count in the
            loss.
        quantize: Whether to reduce values to 8 bits, as SatMAE's loader does.
        **pretraining: What is trained, and on which images; see `PretrainingOptions`.

    Raises:
        ValueError: If *adapter* is given together with *rank* or *alpha*, arguments for
            a model by name are given with a backbone, or *base_lr* is not positive.
    """

    letter = 'M'
    reconstructs = True
    ignore = (*PretrainingTask.ignore, 'objective')
    objective: MAE

    def __init__(
        self,
        model: Backbone | str = 'vit_large_patch16_224.mae',
        *,
        objective: MAEOptions = MAEOptions(),
        crop_scale: tuple[float, float] = (0.2, 1.0),
        augmentations: nn.Module | None = None,
        base_lr: float = 4.5e-4,
        schedule: Schedule = SCHEDULE,
        no_data: float | None = None,
        quantize: bool = False,
        **pretraining: Any,
    ) -> None:
        """Build the adapted student and the decoder."""
        schedule = as_options(SCHEDULE, schedule)
        super().__init__(
            PretrainingOptions(base_lr=base_lr, schedule=schedule, **pretraining)
        )
        objective = as_options(MAEOptions(), objective)
        self.save_hyperparameters({'objective': plain(objective)})
        self.given_no_data = self.no_data = no_data
        self.quantizes = quantize
        self.quantize = Quantize() if quantize else nn.Identity()
        student = self.new_student(model)
        extras = student.record.take_extras()
        if augmentations is None:
            augmentations = SingleCrop(
                self.image_size, (crop_scale[0], crop_scale[1]), self.mean, self.std
            )
        self.objective = MAE(student, augment=augmentations, **asdict(objective))
        alpha = self.options.alpha
        self.objective.start_decoder(extras, 1 if alpha is None else alpha)

    def summary(self) -> str:
        """Describe the run that is about to start, and how the decoder is trained."""
        decoder = self.objective.decoder
        trained, size = count(decoder)
        share = f'{trained / 1e6:.2f} of {size / 1e6:.2f} M parameters trained'
        lines = [super().summary()]
        if untrained := self.objective.student.record.untrained:
            lines.append(f'backbone: {", ".join(untrained)} not in the weights, new')
        change = adapted(decoder)
        if change is None:
            lines.append(
                f'decoder: not in the weights, new and trained in full; {share}'
            )
        else:
            rank = self.objective.options.decoder_rank
            parts = ['norms', *([f'LoRA of rank {rank}'] if rank else [])]
            parts += [f'{name}, which is new' for name in change.adaptation.modules]
            lines.append(
                'decoder: from the weights, frozen except for'
                f' {" and ".join(parts)}; {share}'
            )
        if self.no_data is not None:
            lines.append(f'no data: {self.no_data:g} in all bands, not in the loss')
        return '\n'.join(lines)

    def scaled_lr(self, effective_batch: int) -> float:
        """Return base_lr * effective batch / 256."""
        return self.options.base_lr * effective_batch / 256

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return matrices and, without weight decay, vectors, as MAE does."""
        (group,) = super().parameter_groups()
        return without_decay(group)

    def setup(self, stage: str) -> None:
        """Prepare the images, and ask the data module for its no-data value."""
        super().setup(stage)
        self.no_data = self.given_no_data
        if self.no_data is None:
            self.no_data = declared_no_data(getattr(self.trainer, 'datamodule', None))

    def unit_image(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the images in [0, 1], finite, in 8 bits if wanted."""
        return self.known_image(batch).nan_to_num(0)

    def known_image(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the images in [0, 1], NaN where there is no data."""
        image = self.raw_images.sensor(batch['image'])
        if self.no_data is not None:
            missing = (image == self.no_data).all(-3, keepdim=True)
            image = image.masked_fill(missing, nan)
        unit = self.quantize(self.raw_images.unit(image))
        return unit.masked_fill(image.isnan(), nan)
