"""MAE steps: ours, and one from lightly's modules with everything trained."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import timm
import torch
from flops import counter, utilisation
from report import NotRunError
from steps import TIMED, WARMUP, peak, release, reset_peak
from timing import Clock, matmul_rate
from torch import Tensor, nn
from torch.optim import AdamW

from torchgeo_explora.adapt import Adaptation, adapt, lora
from torchgeo_explora.models import ViT
from torchgeo_explora.objectives import MAE

MODEL, LARGE = 'vit_small_patch16_224', 'vit_large_patch16_224'
SMALL = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}
CPU = torch.device('cpu')
#: Width, depth and heads of both decoders.
DECODER, SMALL_DECODER = (512, 8, 16), (24, 1, 2)


class ExploraMAE(nn.Module):
    """M-ExPLoRA's step: [-1]-r64, with a decoder as if it came with the weights."""

    def __init__(self, tiny: bool, model: str = MODEL) -> None:
        """Adapt a random ViT."""
        super().__init__()
        student = ViT(model, image_size=224, **(SMALL if tiny else {}))
        adapt(student, Adaptation(adapter=lora(64)))
        dim, depth, heads = SMALL_DECODER if tiny else DECODER
        self.objective = MAE(
            student, decoder_dim=dim, decoder_depth=depth, decoder_heads=heads
        )
        adapt(self.objective.decoder, Adaptation((), cls_token=False, adapter=lora(32)))

    def forward(self, image: Tensor) -> Tensor:
        """Return the loss of normalised images."""
        return self.objective({'image': image}, 0.5)['mae']


class LightlyMAE(nn.Module):
    """MAE as in lightly's example, with pixels normalised per patch."""

    def __init__(self, tiny: bool, model: str = MODEL) -> None:
        """Build encoder and decoder of the same sizes."""
        from lightly.models.modules import (
            MaskedVisionTransformerDecoderTIMM,
            MaskedVisionTransformerTIMM,
        )

        super().__init__()
        vit: Any = timm.create_model(model, num_classes=0, **(SMALL if tiny else {}))
        dim, depth, heads = SMALL_DECODER if tiny else DECODER
        self.patch = vit.patch_embed.patch_size[0]
        self.backbone = MaskedVisionTransformerTIMM(vit)
        self.length = self.backbone.sequence_length
        self.embed = nn.Linear(vit.embed_dim, dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            vit.patch_embed.num_patches, dim, depth, heads
        )
        self.head = nn.Linear(dim, self.patch**2 * 3)

    def forward(self, image: Tensor) -> Tensor:
        """Return the loss of normalised images."""
        from lightly.models import utils

        keep, hidden = utils.random_token_mask((len(image), self.length), 0.75)
        encoded = self.embed(self.backbone.encode(image, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(image), self.length))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        decoded = self.decoder.decode(self.decoder.add_pos_embed(tokens))
        found = self.head(utils.get_at_index(decoded, hidden))
        patches = utils.patchify(image, self.patch)
        target = utils.get_at_index(patches, hidden - 1)
        return nn.functional.mse_loss(found, utils.normalize_mean_var(target))


def run(
    record: dict[str, Any],
    device: torch.device,
    tiny: bool,
    left: Callable[[], float],
    save: Callable[[], None],
) -> None:
    """Fill the part of the GPU benchmark: arguments as in `steps.run`."""
    images = 4 if tiny else 256
    found = matmul_rate(device, 256 if tiny else 8192)
    record |= {
        'what': 'ViT-L/16 under a decoder of 512, 8 blocks and 16 heads, bfloat16'
        f' autocast, {images} random images: ours, and all trained, from lightly',
        'matmul_bfloat16': found,
        'runs': {},
    }
    kinds: dict[str, type[nn.Module]] = {'explora': ExploraMAE, 'lightly': LightlyMAE}
    for name, kind in kinds.items():
        model: nn.Module | None = None
        if left() < 20:
            row = {'status': 'not run', 'reason': 'no time left for this part'}
        else:
            try:
                model = kind(tiny, MODEL if tiny else LARGE).to(device)
                row = {'status': 'done'} | measure_masked(
                    *(model, images, found['tflops'], (WARMUP, TIMED)),
                    *(device, torch.bfloat16),
                )
            except ImportError as error:
                raise NotRunError(f'lightly is not importable: {error}') from error
            except torch.OutOfMemoryError as error:
                row = {'status': 'not run', 'reason': f'out of memory: {error}'[:200]}
        record['runs'][name] = row
        del model
        release()
        save()


def measure_masked(
    model: nn.Module,
    images: int,
    rate: float,
    steps: tuple[int, int],
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Return the cost of steps.

    Args:
        model: Returns a loss of normalised images.
        images: B, images of a step.
        rate: Measured TFLOP/s of a matrix product.
        steps: Numbers of steps: first untimed, then timed.
        device: Where the model is.
        dtype: Type of autocast; float32 for none.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    # Fused for both, so that the difference is due to the step.
    fused = device.type == 'cuda' or None
    optimizer = AdamW(trained, lr=1e-4, weight_decay=0.05, fused=fused)
    image = torch.randn(images, 3, 224, 224, device=device)
    clock = Clock(device)
    operations = counter()
    warmup, timed = steps
    for number in range(warmup + timed):
        if number == warmup:
            reset_peak(device)
        clock.start()
        with operations if not number else nullcontext():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = model(image)
            clock.mark('forward')
            loss.backward()
        clock.mark('backward')
        optimizer.step()
        optimizer.zero_grad()
        clock.mark('optimizer')
    parts = clock.milliseconds(skip=warmup)
    return {
        'milliseconds': parts,
        'images_per_second': round(1000 * images / parts['step'], 2),
        'peak_memory_gib': peak(device),
        **utilisation(operations.get_total_flops(), parts['step'], rate),
        'parameters': {'trained': sum(p.numel() for p in trained)},
    }
