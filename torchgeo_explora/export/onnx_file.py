"""Whole backbones as ONNX files."""

import copy
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from torchgeo_explora.adapt import merged
from torchgeo_explora.models import Backbone, DOFAViT, TemporalViT, ViT
from torchgeo_explora.models.backbones.coded import CodedBackbone
from torchgeo_explora.writing import replacing


def export_onnx(backbone: Backbone, path: str | os.PathLike[str]) -> None:
    """Write the backbone as ONNX: `image` to `cls` (B, D) and `patch` (B, N, D).

    The batch may have any size, and the image any multiple of the patch size; positions
    are resized by the backbone's own rule. With registers, the image must have the
    backbone's size. Before the file is kept, onnxruntime runs it, and the features are
    compared with those of the backbone.

    Args:
        backbone: Adapted or plain.
        path: The file, `*.onnx`.

    Raises:
        ModuleNotFoundError: If onnx, onnxscript or onnxruntime is not installed.
        OSError: If the file cannot be written; an old file stays as it was.
        ValueError: If the backbone takes more than an image, is larger than the 2 GiB
            of an ONNX file, or if onnxruntime gives other features.
    """
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"this export needs {name}: pip install 'torchgeo-explora[export]'"
            )
    if isinstance(backbone, TemporalViT):
        raise ValueError(
            'a TemporalViT takes timestamps in addition to the image and checks their'
            ' values, which ONNX cannot express: use export_timm'
        )
    plain = merged(backbone).cpu().eval()
    size = sum(p.numel() * p.element_size() for p in plain.parameters())
    if size >= 2**31:
        raise ValueError(
            f'the backbone has {size / 2**30:.1f} GiB of weights, and an ONNX file'
            ' holds at most 2: use export_timm'
        )
    model = _Exported(copy.deepcopy(plain))
    height, width = backbone.image_size
    # Neither square nor 1: torch.export treats equal sizes as the same number.
    image = torch.randn(2, backbone.in_channels, height, width)
    shapes: dict[int, Any] = {0: Dim('batch')}
    if model.any_size:
        patch = backbone.patch_size
        image = torch.randn(2, backbone.in_channels, height + patch, width + 2 * patch)
        shapes |= {2: patch * Dim('rows'), 3: patch * Dim('columns')}
    # Dynamo, since plain tracing makes the number of images a constant.
    program = torch.export.export(
        model, (image,), dynamic_shapes={'image': shapes}, strict=True
    )
    exported = torch.onnx.export(
        program,
        (image,),
        input_names=['image'],
        output_names=['cls', 'patch'],
        verbose=False,
    )
    assert exported is not None
    exported.model.metadata_props['arguments'] = str(backbone.arguments)
    with replacing(path) as part:
        exported.save(part, external_data=False)
        _compare(part, plain)


class _Exported(nn.Module):
    """A plain backbone whose positions ONNX can compute for any image size."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        host: Any = backbone
        self.backbone = host
        # Models with registers resize by another rule, with antialiasing; what a user's
        # own backbone does is not known.
        table = isinstance(host, ViT | CodedBackbone | DOFAViT)
        self.any_size = table and getattr(host, 'reg_token', None) is None
        if self.any_size:
            host.position = self.position

    def position(self, grid: tuple[int, int]) -> Tensor:
        """Return the position table of a grid (h, w), (1, h * w, C)."""
        rows, columns = self.backbone.grid
        table = self.backbone.pos_embed[:, -rows * columns :]
        table = table.unflatten(1, (rows, columns))
        sizes = [torch.scalar_tensor(size) for size in grid]
        same = (sizes[0] == rows) & (sizes[1] == columns)
        # DINOv2's rule, or the table itself if it fits.
        down, across = (
            _cubic(n, m, torch.where(same, 1.0, m / (size + 0.1)))
            for n, m, size in zip(grid, (rows, columns), sizes, strict=True)
        )
        return torch.einsum('im,bmnd,jn->bijd', down, table, across).flatten(1, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        cls, patch = self.backbone(image)
        return cls, patch


def _cubic(size: int, source: int, step: Tensor) -> Tensor:
    """Return the weights (size, source) of bicubic interpolation along one axis.

    They equal those of `torch.nn.functional.interpolate` (a = -0.75, edges repeated),
    which can only be exported for a known size.

    Args:
        size: Number of interpolated values.
        source: Number of given values.
        step: Distance between interpolated values, in units of the source.
    """
    place = (torch.arange(size) + 0.5) * step - 0.5
    near = place.floor()[:, None] + torch.arange(-1, 3)  # (size, 4)
    distance = (place[:, None] - near).abs()
    inner = ((1.25 * distance - 2.25) * distance) * distance + 1
    outer = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    weight = torch.where(distance <= 1, inner, outer)
    hit = near.clamp(0, source - 1)[:, :, None] == torch.arange(source)
    return (weight[:, :, None] * hit).sum(1)


def _compare(path: os.PathLike[str], backbone: Backbone) -> None:
    """Check that onnxruntime gives the backbone's features.

    Raises:
        ValueError: If it does not.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider']
    )
    generator = torch.Generator().manual_seed(0)
    shape = (3, backbone.in_channels, *backbone.image_size)
    image = torch.randn(shape, generator=generator)
    with torch.inference_mode():
        expected = backbone(image)
    try:
        results = session.run(None, {'image': image.numpy()})
    # onnxruntime's errors have no common base class.
    except Exception as error:
        raise ValueError(
            f'onnxruntime cannot run the exported {type(backbone).__name__} ({error}):'
            ' in `embed`, use expand, not repeat, with sizes that depend on the image'
        ) from error
    for found, wanted in zip(results, expected, strict=True):
        gap = (torch.from_numpy(found) - wanted).abs().max().item()
        if not gap <= 1e-4 * max(1.0, wanted.abs().max().item()):
            raise ValueError(
                f'onnxruntime differs from the backbone by {gap:.2g}: the file is not'
                ' kept; report it with the versions of torch, onnx and onnxruntime'
            )
