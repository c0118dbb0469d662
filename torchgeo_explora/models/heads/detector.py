"""torchvision's detectors on a plain ViT."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from torchgeo.tasks.utils import GeneralizedRCNNTransformNoOp
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from torchgeo_explora.models.heads.pyramid import SimplePyramid


class TokenPyramid(nn.Module):
    """ViTDet's pyramid with a coarser, pooled level, as torchvision expects it.

    The ViT is called as a function and is not part of the module, so it is not in the
    detector's state.

    Args:
        tokens: Maps images (B, C, H, W) to feature maps (B, D, h, w).
        dim: D.
        channels: Channels of each level.
    """

    def __init__(
        self, tokens: Callable[[Tensor], Tensor], dim: int, channels: int = 256
    ) -> None:
        """Make the levels."""
        super().__init__()
        self.tokens = tokens
        self.pyramid = SimplePyramid(dim, channels)
        self.out_channels = channels

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return five levels by name, finest first."""
        levels = self.pyramid(self.tokens(image))
        names = [*map(str, range(len(levels))), 'pool']
        levels.append(max_pool2d(levels[-1], 1, 2))
        return OrderedDict(zip(names, levels, strict=True))


def build_detector(
    kind: Literal['faster-rcnn', 'fcos'],
    pyramid: TokenPyramid,
    classes: int,
    patch_size: int,
    anchors: Sequence[float] | None = None,
) -> nn.Module:
    """Return a detector that takes normalised images of any size.

    Args:
        kind: 'faster-rcnn' with two stages, or 'fcos' with one and without anchors.
        pyramid: Feature maps with strides of 1/4, 1/2, 1, 2 and 4 patches.
        classes: Number of classes, including the background.
        patch_size: Pixels along each side of a patch.
        anchors: Side of the anchors of each of the five levels in pixels; 2 to 32
            patches if None. FCOS uses the strides instead.

    Raises:
        ValueError: If *kind* is unknown, the number of anchors is not five, or FCOS
            cannot divide the channels into groups.
    """
    strides = [patch_size * factor for factor in (0.25, 0.5, 1, 2, 4)]
    detector: FasterRCNN | FCOS
    if kind == 'faster-rcnn':
        sides = anchors or [8 * stride for stride in strides]
        if len(sides) != len(strides):
            raise ValueError(
                f'*anchors* are {list(sides)}: give one for each of the 5 levels'
            )
        detector = FasterRCNN(
            pyramid,
            classes,
            rpn_anchor_generator=AnchorGenerator(
                tuple((side,) for side in sides), ((0.5, 1.0, 2.0),) * len(sides)
            ),
            box_roi_pool=MultiScaleRoIAlign(['0', '1', '2', '3'], 7, 2),
        )
    elif kind == 'fcos':
        if pyramid.out_channels % 32:
            raise ValueError(
                f'*pyramid_channels* {pyramid.out_channels} must be a multiple of 32:'
                ' FCOS normalises in 32 groups'
            )
        detector = FCOS(
            pyramid,
            classes,
            anchor_generator=AnchorGenerator(
                tuple((stride,) for stride in strides), ((1.0,),) * len(strides)
            ),
        )
    else:
        raise ValueError(f"*detector* is {kind!r}: choose 'faster-rcnn' or 'fcos'")
    # The task normalises images; here they are padded so that all levels fit.
    detector.transform = GeneralizedRCNNTransformNoOp()
    detector.transform.size_divisible = 2 * patch_size
    return detector
