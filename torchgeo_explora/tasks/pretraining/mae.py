"""M-ExPLoRA: extended masked-autoencoder pre-training."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from peft import PeftConfig
from torch import Tensor, nan, nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapt import Adaptation, adapt, count, lora
from torchgeo_explora.adapt.delta import adapted
from torchgeo_explora.augment import Quantize, SingleCrop
from torchgeo_explora.models import GroupChannelViT, ViT
from torchgeo_explora.models.backbones.backbone import Backbone, check_size
from torchgeo_explora.objectives import MAE
from torchgeo_explora.tasks.pretraining.base import PretrainingTask
from torchgeo_explora.tasks.run.adaptation import choose_adapter, plain_arguments
from torchgeo_explora.tasks.run.backbone import describe, fill, rebuild
from torchgeo_explora.tasks.run.raw_images import no_data as declared_no_data


class ExploraMAETask(PretrainingTask):
    """Adapt a ViT to unlabelled images with MAE's objective and a small delta.

    Khanna et al., *ExPLoRA* (https://arxiv.org/abs/2406.10973). The defaults are the
    paper's M-[24]-r64 for a ViT-L on RGB images. Any other backbone, such as
    `GroupChannelViT` for spectral groups or `TemporalViT` for series, is given whole as
    *model*, by its class path in a configuration: the backbone decides what its tokens
    are, and the task needs no argument for each kind.

    A decoder that comes with the weights is frozen but for its norms and LoRA of rank
    *decoder_rank*; without one it trains whole, and the start-up line says so. It is
    thrown away after: the delta holds the backbone's alone.

    What differs from the authors' code: time is counted in optimizer steps, and what
    the weights do not give (embeddings and codes of another kind of backbone) trains
    whole without being named.
    """

    letter = 'M'
    ignore = ('model', *PretrainingTask.ignore)
    objective: MAE

    def __init__(
        self,
        model: Backbone | str = 'vit_large_patch16_224.mae',
        # bool first: a command line's `true` is no name.
        weights: bool | WeightsEnum | str | None = True,
        in_channels: int | None = None,
        image_size: int | None = None,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        unfreeze: Sequence[int] = (-1,),
        norms: bool = True,
        cls_token: bool = True,
        modules: Sequence[str] = (),
        rank: int | None = None,
        alpha: int | None = None,
        adapter: PeftConfig | dict[str, Any] | None = None,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        decoder_mlp_ratio: float = 4.0,
        decoder_channel_dim: int = 128,
        decoder_time_dim: int = 192,
        decoder_rank: int = 32,
        mask_ratio: float = 0.75,
        consistent_mask: bool = False,
        norm_pix: bool = True,
        legacy_channel_order: bool = False,
        base_lr: float = 4.5e-4,
        min_lr: float = 0.0,
        warmup: float = 0.005,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        no_data: float | None = None,
        quantize: bool = False,
        augmentations: nn.Module | None = None,
        value_range: tuple[Any, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        drop_path: float | None = None,
        model_args: dict[str, Any] | None = None,
        frozen_dtype: Literal['float32', 'bfloat16'] = 'float32',
        checkpointing: bool = False,
        compiled: bool = False,
        seed: int = 0,
    ) -> None:
        """Build the adapted student and the decoder.

        Args:
            model: A backbone, or the name of a timm VisionTransformer.
            weights: A path to a checkpoint, a weights enum or its name, True for timm's
                own of a named model, or None for random weights. A given backbone
                loads them by its `start_from`; None leaves it as it is.
            in_channels: Channels of the images, for a named model (3 if None).
            image_size: Size of the views, in pixels; 224 for a named model, that of a
                given backbone if None.
            crop_scale: Range of a view's share of the image's area.
            unfreeze: Indices of the blocks that train whole; negative ones count from
                the end.
            norms: Whether all normalisation layers train.
            cls_token: Whether the class token trains.
            modules: Names of modules or parameters that train whole besides.
            rank: Rank of the default LoRA on q and v (64 if None); 0 for no adapter.
            alpha: LoRA scaling is alpha / rank (alpha 1 if None, as the authors have),
                in the decoder too.
            adapter: Any PEFT config instead of the default LoRA; then neither *rank*
                nor *alpha* may be given.
            decoder_dim: Width of the decoder.
            decoder_depth: Blocks of the decoder.
            decoder_heads: Attention heads of the decoder.
            decoder_mlp_ratio: Width of its hidden layers over its own.
            decoder_channel_dim: Part of its width for the code of a spectral group.
            decoder_time_dim: Part of its width for the code of a time.
            decoder_rank: Rank of LoRA on q and v of a decoder that comes with the
                weights; 0 for none.
            mask_ratio: Share of the tokens that are hidden, between 0 and 1.
            consistent_mask: Whether the same places are hidden in all groups or times.
            norm_pix: Whether pixels are predicted normalised per patch.
            legacy_channel_order: Whether spectral groups are decoded as SatMAE
                published it, which its released decoders need.
            base_lr: Rate for an effective batch of 256; the rate in use is this times
                effective batch / 256.
            min_lr: Rate at the end of the cosine.
            warmup: Share of the run with a linear warm-up.
            betas: AdamW's coefficients.
            weight_decay: AdamW's weight decay, of matrices only.
            no_data: Sensor value that means no data where all bands have it; what the
                data module says if None. NaN means so everywhere. Such pixels do not
                count in the loss.
            quantize: Whether to cut values to 8 bits, as SatMAE's loader does.
            augmentations: Module from (B, C, H, W) in [0, 1], NaN where there is no
                data, to normalised views of one size, instead of MAE's.
            value_range: (low, high) of the sensor values, scalars or one per channel;
                found from the data module if None.
            mean: Mean of the normalisation, of values in [0, 1]; the base's if None,
                averaged over its channels where there are not as many.
            std: Standard deviation, likewise.
            drop_path: Drop-path rate of a named model (0 if None).
            model_args: Further arguments of a named model (`embed_dim`, `depth`, ...).
            frozen_dtype: Type in which frozen linear weights are stored. Under
                precision bf16-mixed, bfloat16 halves them and changes no output.
            checkpointing: Whether blocks keep their input alone for the gradient and
                work twice: far less memory, about a third more time.
            compiled: Whether the blocks run through torch.compile.
            seed: Seed of augmentation, masks and the order of the images.

        Raises:
            ValueError: If *adapter* comes together with *rank* or *alpha*, arguments of
                a named model with a backbone, or *base_lr* is not positive.
        """
        self.weights = weights
        self.adapter = choose_adapter(adapter, rank, alpha)
        self.base_lr = base_lr
        self.min_lr = min_lr
        self.warmup = warmup
        self.betas = betas
        self.weight_decay = weight_decay
        self.value_range = value_range
        self.no_data = no_data
        self.seed = seed
        # A tuple hides modules: none may be assigned before `Module.__init__`.
        self._given = (rebuild(model), augmentations)
        super().__init__()
        self.save_hyperparameters(
            plain_arguments(weights, adapter) | {'model': describe(self._given[0])}
        )

    def configure_models(self) -> None:
        """Build backbone, delta, decoder and objective."""
        hparams = self.hparams
        model, augmentations = self._given
        student: Any = (
            self._named(model) if isinstance(model, str) else self._filled(model)
        )
        rest, student.rest = getattr(student, 'rest', {}), {}
        fresh = getattr(student, 'scratch', ())
        self.adapt_student(student, [*hparams['modules'], *fresh])
        self.image_size = hparams['image_size'] or _side(student)
        check_size((self.image_size, self.image_size), student.patch_size)
        if augmentations is None:
            augmentations = SingleCrop(
                self.image_size, tuple(hparams['crop_scale']), self.mean, self.std
            )
        self.quantize = Quantize() if hparams['quantize'] else nn.Identity()
        self.objective = MAE(
            student,
            decoder_dim=hparams['decoder_dim'],
            decoder_depth=hparams['decoder_depth'],
            decoder_heads=hparams['decoder_heads'],
            decoder_mlp_ratio=hparams['decoder_mlp_ratio'],
            decoder_channel_dim=hparams['decoder_channel_dim'],
            decoder_time_dim=hparams['decoder_time_dim'],
            norm_pix=hparams['norm_pix'],
            legacy_channel_order=hparams['legacy_channel_order'],
            ratio=hparams['mask_ratio'],
            consistent=hparams['consistent_mask'],
            augment=augmentations,
        )
        decoder = self.objective.decoder
        if not any(name.startswith('decoder_') for name in rest):
            decoder.read_from(student.norm)
        else:
            fresh = decoder.start_from(rest)
            whole = isinstance(student, GroupChannelViT) and not fresh
            if whole and not hparams['legacy_channel_order']:
                warnings.warn(
                    "a decoder of SatMAE's release was trained in its published order"
                    ' of bands: set *legacy_channel_order* to True, or go on if yours'
                    ' was not (docs/group_channel_order.md)',
                    stacklevel=2,
                )
            rank, alpha = hparams['decoder_rank'], hparams['alpha']
            adapter = lora(rank, 1 if alpha is None else alpha) if rank else None
            adapt(
                decoder,
                Adaptation((), cls_token=False, adapter=adapter, modules=fresh),
            )

    def _named(self, model: str) -> ViT:
        """Return a timm model with its weights."""
        hparams = self.hparams
        return ViT(
            model,
            self.weights,
            in_channels=hparams['in_channels'] or 3,
            image_size=hparams['image_size'] or 224,
            drop_path_rate=hparams['drop_path'] or 0.0,
            **(hparams['model_args'] or {}),
        )

    def _filled(self, student: Backbone) -> Backbone:
        """Return a backbone that was given, with the weights in it."""
        names = ('in_channels', 'drop_path', 'model_args')
        return fill(student, self.weights, **{n: self.hparams[n] for n in names})

    def summary(self) -> str:
        """Return what is about to run, and what becomes of the decoder."""
        decoder: Any = self.objective.decoder
        trained, size = count(decoder)
        share = f'{trained / 1e6:.2f} of {size / 1e6:.2f} M parameters train'
        lines = [super().summary()]
        student: Any = self.objective.student
        if fresh := getattr(student, 'scratch', ()):
            lines.append(f'backbone: {", ".join(fresh)} not in the weights, new')
        if adapted(decoder) is None:
            lines.append(f'decoder: not in the weights, new, trains whole; {share}')
        else:
            rank = self.hparams['decoder_rank']
            parts = ['norms', *([f'LoRA of rank {rank}'] if rank else [])]
            parts += [f'{name}, which is new' for name in decoder.adaptation.modules]
            lines.append(
                'decoder: from the weights, frozen but for'
                f' {" and ".join(parts)}; {share}'
            )
        if self.no_data is not None:
            lines.append(f'no data: {self.no_data:g} in all bands, not in the loss')
        return '\n'.join(lines)

    def scaled_lr(self, effective_batch: int) -> float:
        """Return base_lr * effective batch / 256."""
        return self.base_lr * effective_batch / 256

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return matrices and, without weight decay, vectors, as MAE does."""
        (group,) = super().parameter_groups()
        matrices = [p for p in group['params'] if p.ndim > 1]
        vectors = [p for p in group['params'] if p.ndim < 2]
        return [{'params': matrices}, {'params': vectors, 'weight_decay': 0.0}]

    def setup(self, stage: str) -> None:
        """Ask the data module for the value that means no data, too."""
        super().setup(stage)
        self.no_data = self.hparams['no_data']
        if self.no_data is None:
            self.no_data = declared_no_data(getattr(self.trainer, 'datamodule', None))

    def unit_image(self, batch: dict[str, Any]) -> Tensor:
        """Return the images in [0, 1], finite, in 8 bits if wanted."""
        return self.known_image(batch).nan_to_num(0)

    def known_image(self, batch: dict[str, Any]) -> Tensor:
        """Return the images in [0, 1], NaN where there is no data."""
        image = self.raw_images.sensor(batch['image'])
        if self.no_data is not None:
            missing = (image == self.no_data).all(-3, keepdim=True)
            image = image.masked_fill(missing, nan)
        unit = self.quantize(self.raw_images.unit(image))
        return unit.masked_fill(image.isnan(), nan)


def _side(backbone: Backbone) -> int:
    """Return the side of the square views that a backbone is made for."""
    height, width = backbone.image_size
    if height != width:
        raise ValueError(
            f'the backbone is made for {height} x {width} pixels, and views are square:'
            ' give *image_size*'
        )
    return height
