"""The yardstick: DINOv2 from lightly's parts and timm, with everything trained."""

import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
from report import NotRunError
from steps import TIMED, WARMUP, peak, random_images, release, reset_peak
from timing import Clock
from torch import Tensor, nn
from torch.optim import AdamW
from training import TINY, Sizes

from torchgeo_explora.augment import MultiCrop
from torchgeo_explora.functional import block_masks

MODELS = ('vit_large_patch14_dinov2', 'vit_base_patch14_dinov2')
MICRO_BATCH = 32


class PlainPort(nn.Module):
    """Student and teacher as whole copies, softmax with a centre for targets."""

    def __init__(self, model: str, sizes: Sizes, **arguments: Any) -> None:
        """Build both; lightly's heads cannot be copied, so that one loads the other."""
        from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
        from lightly.models.modules import (
            DINOv2ProjectionHead,
            MaskedVisionTransformerTIMM,
        )

        super().__init__()
        vit: Any = timm.create_model(
            model,
            num_classes=0,
            img_size=sizes.image_size,
            dynamic_img_size=True,
            **arguments,
        )
        self.student = MaskedVisionTransformerTIMM(
            vit, weight_initialization='skip', pos_embed_initialization='skip'
        )
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        widths = (sizes.hidden_dim, sizes.bottleneck_dim, sizes.prototypes)
        self.head = DINOv2ProjectionHead(vit.embed_dim, *widths)
        self.teacher_head = DINOv2ProjectionHead(vit.embed_dim, *widths)
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher_head.requires_grad_(False)
        self.dino = DINOLoss(sizes.prototypes)
        self.ibot = IBOTPatchLoss(sizes.prototypes)
        self.koleo = KoLeoLoss()

    def forward(self, global_: Tensor, local: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of views, (2, B, ...) and (V, B, ...); mask (2 * B, h, w)."""
        crops = global_.flatten(0, 1)
        hidden = mask.flatten(1)
        with torch.no_grad():
            seen = self.teacher.encode(crops)
            teacher_cls = self.teacher_head(seen[:, 0]).chunk(2)
            teacher_patch = self.teacher_head(seen[:, 1:][hidden])
        padded = nn.functional.pad(hidden, (1, 0))  # the class token is not hidden
        tokens = self.student.encode(crops, mask=padded)
        cls = tokens[:, 0]
        student_cls = [*self.head(cls).chunk(2)]
        student_patch = self.head(tokens[:, 1:][hidden])
        small = self.student.encode(local.flatten(0, 1))[:, 0]
        student_cls += self.head(small).chunk(len(local))
        loss = self.dino([*teacher_cls], student_cls)
        loss = loss + self.ibot(teacher_patch, student_patch, mask)
        return loss + 0.1 * sum(self.koleo(part) for part in cls.chunk(2))


def run(
    record: dict[str, Any],
    device: torch.device,
    tiny: bool,
    left: Callable[[], float],
    save: Callable[[], None],
) -> None:
    """Fill the part: arguments as in `steps.run`."""
    try:
        import lightly
    except ImportError as error:
        raise NotRunError(f'lightly is not importable: {error}') from error
    sizes = TINY if tiny else Sizes()
    images = 4 if tiny else MICRO_BATCH
    record |= {
        'what': f'lightly {lightly.__version__} DINOLoss, IBOTPatchLoss, KoLeoLoss and'
        ' DINOv2ProjectionHead around timm, all parameters trained, teacher a whole'
        ' copy; the views of torchgeo_explora; otherwise as in step',
        'runs': {},
    }
    models = ('vit_small_patch14_dinov2',) if tiny else MODELS
    arguments = {'embed_dim': 24, 'depth': 2, 'num_heads': 2} if tiny else {}
    for name in models:
        key = f'{name}, micro-batch {images}'
        if left() < 20:
            found = {'status': 'not run', 'reason': 'no time left for this part'}
        else:
            port: PlainPort | None = None
            try:
                port = PlainPort(name, sizes, **arguments).to(device)
                found = {'status': 'done'} | measure(port, images, sizes, device)
            except torch.OutOfMemoryError as error:
                found = {'status': 'not run', 'reason': f'out of memory: {error}'[:200]}
            del port
            release()
        record['runs'][key] = found
        save()


def measure(
    port: PlainPort, images: int, sizes: Sizes, device: torch.device
) -> dict[str, Any]:
    """Return the cost of steps of *images* images."""
    side = sizes.image_size // 14
    crops = MultiCrop(
        sizes.image_size,
        14 * max(1, round(sizes.image_size * 98 / 224 / 14)),
        sizes.local_views,
    ).to(device)
    batch = random_images(images, device)
    trained = [p for p in port.parameters() if p.requires_grad]
    optimizer = AdamW(trained, lr=1e-4, weight_decay=0.0)
    pairs = [
        pair
        for teacher, student in (
            (port.teacher, port.student),
            (port.teacher_head, port.head),
        )
        for pair in zip(teacher.parameters(), student.parameters(), strict=True)
    ]
    targets, sources = zip(*pairs, strict=True)
    clock = Clock(device)
    for number in range(WARMUP + TIMED):
        if number == WARMUP:
            reset_peak(device)
        clock.start()
        with torch.autocast(device.type, torch.bfloat16):
            views = crops(batch.float().div_(255))
            clock.mark('augment')
            mask = block_masks(2 * images, (side, side)).view(-1, side, side).to(device)
            loss = port(views.global_, views.local, mask)
        clock.mark('forward')
        loss.backward()
        clock.mark('backward')
        nn.utils.clip_grad_norm_(trained, 3.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.mark('optimizer')
        with torch.no_grad():
            torch._foreach_lerp_(targets, sources, 0.006)
        clock.mark('average')
    parts = clock.milliseconds(skip=WARMUP)
    return {
        'milliseconds': parts,
        'images_per_second': round(1000 * images / parts['step'], 2),
        'peak_memory_gib': peak(device),
        'parameters': {'trained': sum(p.numel() for p in trained)},
    }
