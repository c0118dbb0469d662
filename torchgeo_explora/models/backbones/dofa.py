"""DOFA: a Vision Transformer whose patch embedding depends on wavelengths."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora.functional import patchify, resize_grid, sincos_2d
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.tokens import Tokens, check_size, pair
from torchgeo_explora.models.checkpoints import read_state
from torchgeo_explora.models.heads.mae_decoder import mae_blocks

#: Central wavelengths in micrometres by the name of a band, as used to train DOFA. The
#: values for radar only distinguish it from optical bands.
WAVELENGTHS = {
    'B01': 0.443,
    'B02': 0.49,
    'B03': 0.56,
    'B04': 0.665,
    'B05': 0.705,
    'B06': 0.74,
    'B07': 0.783,
    'B08': 0.842,
    'B8A': 0.865,
    'B09': 0.945,
    'B10': 1.375,
    'B11': 1.61,
    'B12': 2.19,
    'blue': 0.49,
    'green': 0.56,
    'red': 0.665,
    'nir': 0.842,
    'swir1': 1.61,
    'swir2': 2.19,
    'VV': 3.75,
    'VH': 3.75,
}
# As in the release: width of a wavelength's code, tokens that all wavelengths share,
# heads and hidden width of the layer that joins them, and the scale of the kernels.
_CODE, _SHARED, _HEADS, _HIDDEN, _SCALE = 128, 128, 4, 2048, 0.01


class DOFAViT(Backbone):
    """A ViT for the bands of any sensor, which it knows by their wavelengths (DOFA).

    A small network computes the kernel of the patch embedding from the wavelengths;
    everything after it is a plain ViT with fixed sin-cos positions. So one set of
    weights serves any number of bands in any order. Names are those of TorchGeo's
    `DOFA` without a head, except that `attn.qkv` is split. Differences: positions are
    resized for other image sizes, by DINOv2's rule at run time, and there is always a
    final norm. The released weights have none, so its weight starts at 1 and its bias
    at 0.

    Mean and standard deviation are 0.5 and 0.25: if a band's mean +- 2 standard
    deviations are mapped to [0, 1], the normalised band has mean 0 and standard
    deviation 1, as in DOFA's training.

    Reference: Xiong et al., *DOFA* (https://arxiv.org/abs/2403.15356).

    Args:
        wavelengths: Central wavelength of each channel in micrometres; looked up for
            *bands* if None.
        weights: None for random weights, or as for `start_from`.
        image_size: Training size in pixels, one number or height and width.
        bands: Names of the channels, by which a task then selects them from the bands
            of its images; their wavelengths are looked up in `WAVELENGTHS` unless
            given. There, B01 to B12 are Sentinel-2's: Landsat's B5 has another
            wavelength.
        patch_size: Pixels along each side of a patch.
        embed_dim: D, width of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Width of a block's hidden layer, relative to D.

    Raises:
        FileNotFoundError: If the weights are not on disk and cannot be downloaded.
        RuntimeError: If the weights do not fit.
        ValueError: If the wavelength of a band is unknown or out of range, there are
            none, or a size does not fit.
    """

    wavelengths: Tensor

    def __init__(
        self,
        wavelengths: Sequence[float] | None = None,
        weights: WeightsEnum | PathLike[str] | str | None = None,
        image_size: int | Sequence[int] = 224,
        bands: Sequence[str] | None = None,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
    ) -> None:
        """Build the embedding and the blocks."""
        waves = _wavelengths(wavelengths, bands)
        size = pair(image_size)
        check_size(size, patch_size)
        if embed_dim % num_heads or embed_dim % 4:
            raise ValueError(
                f'*embed_dim* {embed_dim} is not a multiple of 4 and of *num_heads*'
                f' {num_heads}'
            )
        arguments = {
            'wavelengths': waves,
            'image_size': size,
            'bands': None if bands is None else list(bands),
            'patch_size': patch_size,
            'embed_dim': embed_dim,
            'depth': depth,
            'num_heads': num_heads,
            'mlp_ratio': mlp_ratio,
        }
        super().__init__(arguments, embed_dim, patch_size, len(waves), size)
        self.bands = None if bands is None else tuple(bands)
        self.mean, self.std = (0.5,) * len(waves), (0.25,) * len(waves)
        # An argument, not state: the weights are the same for all wavelengths.
        self.register_buffer('wavelengths', torch.tensor(waves), persistent=False)
        self.patch_embed = WavelengthEmbedding(patch_size, embed_dim)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        # The class token's row is zero: (h * w, D) -> (1, 1 + h * w, D)
        table = F.pad(sincos_2d(self.grid, embed_dim), (0, 0, 1, 0))[None]
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.blocks = mae_blocks(depth, embed_dim, num_heads, mlp_ratio)
        self.norm = LayerNorm(embed_dim)
        if weights:
            self.start_from(weights)

    def start_from(self, weights: WeightsEnum | PathLike[str] | str) -> None:
        """Load weights under the names of TorchGeo's `DOFA`.

        Args:
            weights: Whatever `checkpoints.read_state` takes except True, such as
                `DOFABase16_Weights.DOFA_MAE`.

        Raises:
            FileNotFoundError: If the weights are not on disk and cannot be downloaded.
            RuntimeError: If the weights do not fit; all misfits are listed.
            ValueError: If they are of another architecture or width.
        """
        state, extras = read_state(weights, '')
        token = state.get('cls_token')
        if token is None or 'patch_embed.weight_generator.weight_tokens' not in state:
            raise ValueError(
                f'*weights* {weights} are not of DOFA: give'
                ' DOFABase16_Weights.DOFA_MAE, DOFALarge16_Weights.DOFA_MAE, or a file'
                " of TorchGeo's DOFA"
            )
        if token.shape[-1] != self.embed_dim:
            raise ValueError(
                f'*weights* {weights} are {token.shape[-1]} wide, and *embed_dim* is'
                f' {self.embed_dim}: DOFA base has embed_dim 768, depth 12 and'
                ' num_heads 12, large has 1024, 24 and 16'
            )
        missing = {
            'norm.weight': torch.ones(self.embed_dim),
            'norm.bias': torch.zeros(self.embed_dim),
        }
        self.load_state_dict(missing | state)
        self.record.extras = extras

    def embed(self, image: Tensor, **metadata: Tensor) -> Tokens:
        """Return the patch tokens of an image, with content and position separate.

        The patch that a token sees is shifted up and left by one pixel, as in DOFA.

        Args:
            image: Normalised pixels, (B, C, H, W); H and W are multiples of the patch
                size, and need not be `image_size`.
            **metadata: Ignored.

        Raises:
            ValueError: If the number of channels or the image size does not fit.
        """
        self._check_channels(image)
        height, width = image.shape[-2:]
        check_size((height, width), self.patch_size)
        grid = (height // self.patch_size, width // self.patch_size)
        content = self.patch_embed(image, self.wavelengths)
        return Tokens(content, self.position(grid), (1, *grid))

    def position(self, grid: tuple[int, int]) -> Tensor:
        """Return the position of patch tokens on a grid (h, w), (1, h * w, D)."""
        return resize_grid(self.pos_embed[:, 1:], grid, offset=0.1, source=self.grid)

    def prefix(self) -> Tensor:
        """Return the class token with its position, (1, 1, D)."""
        return self.cls_token + self.pos_embed[:, :1]

    def patchify(self, image: Tensor) -> Tensor:
        """Return the pixels of an image as (B, N, P), in the order of `embed`.

        Inside a patch the order is row, column, channel, as in MAE.
        """
        self._check_channels(image)
        return patchify(image, self.patch_size)

    def _check_channels(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            waves = ', '.join(f'{wave:g}' for wave in self.arguments['wavelengths'])
            raise ValueError(
                f'image has shape {tuple(image.shape)}, expected (B, C, H, W) with the'
                f' C = {self.in_channels} bands at {waves} micrometres: give the'
                ' *wavelengths* of these images, or choose bands'
            )

    def _fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        table = state.get('pos_embed')
        if table is None or table.shape[1] == self.pos_embed.shape[1]:
            return state
        patches = resize_grid(table[:, 1:].float(), self.grid)
        return state | {'pos_embed': torch.cat([table[:, :1].float(), patches], dim=1)}


class WavelengthEmbedding(nn.Module):
    """Patch embedding with its own kernel for each wavelength (DOFA, section 3.2).

    Args:
        patch_size: p, pixels along each side of a patch.
        embed_dim: D, width of a token.
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        """Initialise as DOFA does."""
        super().__init__()
        self.patch_size = patch_size
        self.fclayer = nn.ModuleDict({name: nn.Linear(_CODE, _CODE) for name in _MIX})
        self.weight_generator = _Generator(patch_size**2 * embed_dim, embed_dim)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.constant_(layer.bias, 0.01)

    def forward(self, image: Tensor, wavelengths: Tensor) -> Tensor:
        """Return the content of patch tokens, (B, N, D).

        Args:
            image: (B, C, H, W).
            wavelengths: (C,), in micrometres.
        """
        first, second = (self.fclayer[name] for name in _MIX)
        code = wave_code(wavelengths).to(self.weight_generator.bias_token.dtype)
        waves = code + second(first(code).relu()).relu()  # (C, 128)
        weight, bias = self.weight_generator(waves)
        # (C, p * p * D) -> (D, C, p, p)
        side = self.patch_size
        kernel = weight.unflatten(1, (side, side, -1)).permute(3, 0, 1, 2)
        kernel, bias = (_SCALE * part.to(image.dtype) for part in (kernel, bias))
        tokens = F.conv2d(image, kernel, bias, stride=side, padding=1)
        return tokens.flatten(2).mT  # (B, D, h, w) -> (B, h * w, D)


_MIX = ('w1', 'w2')


def wave_code(wavelengths: Tensor) -> Tensor:
    """Return the sin-cos code of wavelengths in nanometres, (C,) -> (C, 128) float32.

    Like `functional.sincos_1d`, but computed in float32, as when the released weights
    were trained: at angles in the thousands, the last digits of the two differ.

    Args:
        wavelengths: In micrometres.
    """
    half = _CODE // 2
    steps = torch.arange(half, dtype=torch.float32, device=wavelengths.device) / half
    angles = torch.outer(wavelengths.float() * 1000, 1.0 / 10_000**steps)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class _Generator(nn.Module):
    """Computes kernels (C, P * D) and a bias (D,) from codes of wavelengths (C, 128).

    One transformer layer joins the codes with tokens that all wavelengths share.
    """

    def __init__(self, kernel: int, embed_dim: int) -> None:
        super().__init__()
        self.weight_tokens = nn.Parameter(0.02 * torch.randn(_SHARED, _CODE))
        self.bias_token = nn.Parameter(0.02 * torch.randn(1, _CODE))
        layers = nn.ModuleList([_Layer()])
        self.transformer_encoder = nn.ModuleDict({'layers': layers})
        self.fc_weight = nn.Linear(_CODE, kernel)
        self.fc_bias = nn.Linear(_CODE, embed_dim)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.weight_tokens, waves, self.bias_token])
        layers: Any = self.transformer_encoder['layers']
        for layer in layers:
            x = layer(x)
        return self.fc_weight(x[_SHARED:-1] + waves), self.fc_bias(x[-1])


class _Layer(nn.Module):
    """A transformer layer with norms after its branches, under torch's names.

    Not torch's own, which reads weights without the hooks that `store_frozen` sets.
    """

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = _SelfAttention()
        self.linear1 = nn.Linear(_CODE, _HIDDEN)
        self.linear2 = nn.Linear(_HIDDEN, _CODE)
        self.norm1, self.norm2 = nn.LayerNorm(_CODE), nn.LayerNorm(_CODE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * _CODE, _CODE))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * _CODE))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj = nn.Linear(_CODE, _CODE)

    def forward(self, x: Tensor) -> Tensor:
        joint = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # (N, 3 * 128) -> (3, heads, N, 128 / heads)
        q, k, v = joint.unflatten(1, (3, _HEADS, -1)).permute(1, 2, 0, 3)
        found = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        return self.out_proj(found.transpose(0, 1).flatten(1))


def _wavelengths(
    given: Sequence[float] | None, bands: Sequence[str] | None
) -> list[float]:
    """Return one wavelength for each channel, or raise and say what is missing."""
    if given is None:
        if not bands:
            raise ValueError(
                'DOFAViT needs *wavelengths* in micrometres, one for each channel, or'
                ' *bands* by name, such as [B04, B03, B02]'
            )
        known = {_key(name): wave for name, wave in WAVELENGTHS.items()}
        if unknown := [name for name in bands if _key(name) not in known]:
            raise ValueError(
                f'the wavelength of {", ".join(unknown)} is unknown: give'
                f' *wavelengths*, or choose from {", ".join(WAVELENGTHS)}'
            )
        return [known[_key(name)] for name in bands]
    waves = [float(wave) for wave in given]
    if bands is not None and len(bands) != len(waves):
        raise ValueError(
            f'*bands* has {len(bands)} names and *wavelengths* {len(waves)} values:'
            ' give one for each channel'
        )
    if not waves or not all(0.1 <= wave <= 1000 for wave in waves):
        raise ValueError(
            f'*wavelengths* is {waves}: give micrometres from 0.1 to 1000, one for each'
            ' channel, such as 0.665 for red'
        )
    return waves


_SHORT = {'R': 'RED', 'G': 'GREEN', 'B': 'BLUE', 'N': 'NIR'}


def _key(band: str) -> str:
    # This imports Kornia, which is slow.
    from torchgeo_explora.augment.bands import spell_band

    name = spell_band(band).upper()
    return _SHORT.get(name, name)
