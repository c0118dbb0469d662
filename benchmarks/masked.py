"""MAE steps: ours, and one from lightly's modules, everything trained."""

from contextlib import nullcontext
from typing import Any

import timm
import torch
from flops import counter, utilisation
from timing import Clock
from torch import Tensor, nn
from torch.optim import AdamW

from torchgeo_explora.adapt import Adaptation, adapt, lora
from torchgeo_explora.models import ViT
from torchgeo_explora.objectives import MAE

MODEL = 'vit_small_patch16_224'
SMALL = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}
#: Width, depth and heads of both decoders.
DECODER, SMALL_DECODER = (512, 8, 16), (24, 1, 2)


class ExploraMAE(nn.Module):
    """M-ExPLoRA's step: [-1]-r64, the decoder trains whole."""

    def __init__(self, tiny: bool) -> None:
        """Adapt a random ViT."""
        super().__init__()
        student = ViT(MODEL, image_size=224, **(SMALL if tiny else {}))
        adapt(student, Adaptation(adapter=lora(64)))
        dim, depth, heads = SMALL_DECODER if tiny else DECODER
        self.objective = MAE(
            student, decoder_dim=dim, decoder_depth=depth, decoder_heads=heads
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the loss of normalised images."""
        return self.objective({'image': image}, 0.5)['mae']


class LightlyMAE(nn.Module):
    """MAE as lightly's example puts it together, pixels normalised per patch."""

    def __init__(self, tiny: bool) -> None:
        """Build encoder and decoder of the same sizes."""
        from lightly.models.modules import (
            MaskedVisionTransformerDecoderTIMM,
            MaskedVisionTransformerTIMM,
        )

        super().__init__()
        vit: Any = timm.create_model(MODEL, num_classes=0, **(SMALL if tiny else {}))
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


def measure_masked(
    model: nn.Module, images: int, rate: float, steps: tuple[int, int]
) -> dict[str, Any]:
    """Return the cost of float32 steps.

    Args:
        model: Returns a loss of normalised images.
        images: B, images of a step.
        rate: Measured TFLOP/s of a matrix product.
        steps: How many come first, and how many are timed.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(trained, lr=1e-4, weight_decay=0.05)
    image = torch.randn(images, 3, 224, 224)
    clock = Clock(image.device)
    operations = counter()
    warmup, timed = steps
    for number in range(warmup + timed):
        clock.start()
        with operations if not number else nullcontext():
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
        **utilisation(operations.get_total_flops(), parts['step'], rate),
        'parameters': {'trained': sum(p.numel() for p in trained)},
    }
