"""The yardsticks: DINOv2 from timm and parts of lightly, trained in full or by LoRA."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import timm
import torch
from flops import counter, utilisation
from peft import LoraConfig, inject_adapter_in_model
from report import NotRunError
from steps import TIMED, WARMUP, peak, random_images, release, reset_peak
from timing import Clock, matmul_rate
from torch import Tensor, nn
from torch.optim import AdamW
from training import TINY, Sizes

from torchgeo_explora.augment import MultiCrop
from torchgeo_explora.functional import block_masks

#: Model, whether LoRA is trained instead of everything, and the micro-batch.
RUNS = (
    ('vit_large_patch14_dinov2', False, 32),
    ('vit_large_patch14_dinov2', True, 32),
    ('vit_large_patch14_dinov2', False, 128),
    ('vit_large_patch14_dinov2', True, 128),
    ('vit_base_patch14_dinov2', False, 32),
)


class PlainPort(nn.Module):
    """Student and teacher as full copies, with centred softmax for targets."""

    def __init__(
        self, model: str, sizes: Sizes, lora: bool = False, **arguments: Any
    ) -> None:
        """Build both; lightly's heads cannot be copied, so one loads from the other.

        Args:
            model: Name of a timm model.
            sizes: Sizes of views and head.
            lora: Whether PEFT's LoRA of rank 64 on `qkv`, the last block and the norms
                are trained instead of everything.
            **arguments: Arguments of the timm model.
        """
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
        if lora:
            adapter = LoraConfig(r=64, lora_alpha=1, target_modules=['qkv'])
            inject_adapter_in_model(adapter, vit)
            for name, parameter in vit.named_parameters():
                if 'norm' in name or name.startswith(f'blocks.{len(vit.blocks) - 1}.'):
                    parameter.requires_grad_(True)
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

    @torch.no_grad()
    def see(self, crops: Tensor, hidden: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the teacher's logits: class tokens by view, and masked patches.

        Args:
            crops: (2 * B, C, S, S), the global views.
            hidden: (2 * B, N), True where the student sees no patch.
        """
        seen = self.teacher.encode(crops)
        cls = self.teacher_head(seen[:, 0]).chunk(2)
        return [*cls], self.teacher_head(seen[:, 1:][hidden])

    def guess(
        self, crops: Tensor, local: Tensor, hidden: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the student's logits in that form, and class tokens, (2 * B, D)."""
        padded = nn.functional.pad(hidden, (1, 0))  # the class token is not hidden
        tokens = self.student.encode(crops, mask=padded)
        cls = tokens[:, 0]
        logits = [*self.head(cls).chunk(2)]
        patch = self.head(tokens[:, 1:][hidden])
        small = self.student.encode(local.flatten(0, 1))[:, 0]
        return [*logits, *self.head(small).chunk(len(local))], patch, cls

    def step(self, global_: Tensor, local: Tensor, mask: Tensor, clock: Clock) -> None:
        """Fill the gradients.

        Args:
            global_: (2, B, C, S, S).
            local: (V, B, C, s, s).
            mask: (2 * B, h, w), True where a patch is hidden.
            clock: Its marks: teacher and student (each with its head), loss (with the
                teacher's softmax), backward.
        """
        crops, hidden = global_.flatten(0, 1), mask.flatten(1)
        teacher_cls, teacher_patch = self.see(crops, hidden)
        clock.mark('teacher')
        student_cls, student_patch, cls = self.guess(crops, local, hidden)
        clock.mark('student')
        loss = self.dino(teacher_cls, student_cls)
        loss = loss + self.ibot(teacher_patch, student_patch, mask)
        loss = loss + 0.1 * sum(self.koleo(part) for part in cls.chunk(2))
        clock.mark('loss')
        # Outside autocast, which is only for what comes before.
        with torch.autocast(mask.device.type, enabled=False):
            loss.backward()
        clock.mark('backward')


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
    record |= {
        'what': f'lightly {lightly.__version__} DINOLoss, IBOTPatchLoss, KoLeoLoss and'
        ' DINOv2ProjectionHead around timm, all parameters trained or LoRA by PEFT on'
        ' qkv, the last block and the norms; teacher a whole copy; the views of'
        " torchgeo_explora; otherwise as in step; operations by torch's counter",
        'matmul_bfloat16': matmul_rate(device, 256 if tiny else 8192),
        'runs': {},
    }
    rate = record['matmul_bfloat16']['tflops']
    small = tuple(('vit_small_patch14_dinov2', lora, 4) for lora in (False, True))
    arguments = {'embed_dim': 24, 'depth': 2, 'num_heads': 2} if tiny else {}
    for name, lora, images in small if tiny else RUNS:
        key = f'{name}, {"LoRA" if lora else "all trained"}, micro-batch {images}'
        if left() < 20:
            found = {'status': 'not run', 'reason': 'no time left for this part'}
        else:
            port: PlainPort | None = None
            try:
                port = PlainPort(name, sizes, lora, **arguments).to(device)
                found = {'status': 'done'} | measure(port, images, sizes, rate, device)
            except torch.OutOfMemoryError as error:
                found = {'status': 'not run', 'reason': f'out of memory: {error}'[:200]}
            del port
            release()
        record['runs'][key] = found
        save()


def measure(
    port: PlainPort,
    images: int,
    sizes: Sizes,
    rate: float,
    device: torch.device,
    steps: tuple[int, int] = (WARMUP, TIMED),
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Return the cost of steps of *images* images: arguments as in `steps.measure`."""
    warmup, timed = steps
    side = sizes.image_size // 14
    crops = MultiCrop(
        sizes.image_size,
        14 * max(1, round(sizes.image_size * 98 / 224 / 14)),
        sizes.local_views,
    ).to(device)
    batch = random_images(images, device)
    trained = [p for p in port.parameters() if p.requires_grad]
    # Fused on a GPU, as ours, so that the difference is due to the step.
    fused = device.type == 'cuda' or None
    optimizer = AdamW(trained, lr=1e-4, weight_decay=0.0, fused=fused)
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
    operations = counter()
    for number in range(warmup + timed):
        if number == warmup:
            reset_peak(device)
        clock.start()
        with (
            operations if not number else nullcontext(),
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        ):
            views = crops(batch.float().div_(255))
            clock.mark('augment')
            mask = block_masks(2 * images, (side, side)).view(-1, side, side).to(device)
            clock.mark('masks')
            port.step(views.global_, views.local, mask, clock)
        nn.utils.clip_grad_norm_(trained, 3.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.mark('optimizer')
        with torch.no_grad():
            torch._foreach_lerp_(targets, sources, 0.006)
        clock.mark('average')
    parts = clock.milliseconds(skip=warmup)
    return {
        'milliseconds': parts,
        'images_per_second': round(1000 * images / parts['step'], 2),
        'peak_memory_gib': peak(device),
        **utilisation(operations.get_total_flops(), parts['step'], rate),
        'parameters': {'trained': sum(p.numel() for p in trained)},
    }
