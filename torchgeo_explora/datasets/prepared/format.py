"""A sample as files, and back: images as JPEG or GeoTIFF, the rest as JSON."""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from torchgeo_explora.datasets.pixels.raster_file import open_tiff

type Encoding = Literal['jpeg', 'integer', 'exact']

_WHOLE = ('uint8', 'uint16', 'int16', 'uint32', 'int32')


def choose_encoding(
    sample: Mapping[str, Any], value_range: Sequence[Any] | None = None
) -> Encoding:
    """Return 'jpeg' for true colour of 8 bits, else 'integer' or 'exact'.

    Values of 8 bits are recognised by their range. Larger values are digital numbers,
    whose fractions come from resampling; small ones are reflectances and the like.

    Args:
        sample: One with `image`.
        value_range: (low, high) of the data set, if known. Without it, a dark image of
            16 bits or a black one of 8 bits is not recognised.
    """
    image = sample['image']
    low, high = float(image.min()), float(image.max())
    known = value_range is not None
    eight_bits = tuple(value_range or ()) == (0, 255) if known else high > 1
    if image.shape[-3] == 3 and low >= 0 and high <= 255 and eight_bits:
        return 'jpeg'
    return 'integer' if high - low > 16 else 'exact'


def encode_sample(
    sample: Mapping[str, Any], encoding: Encoding, quality: int
) -> dict[str, bytes]:
    """Return the files of a sample, by suffix.

    Args:
        sample: `image` (C, H, W) or (T, C, H, W), and tensors, numbers, texts or None.
        encoding: 'jpeg' (8 bits, lossy), 'integer' (rounded to whole numbers, otherwise
            lossless) or 'exact' (float32, bit for bit).
        quality: JPEG quality, 1 to 100.

    Raises:
        ValueError: If a value has another type, or an image does not fit the encoding.
    """
    image = sample['image']
    series = image.ndim == 4
    files: dict[str, bytes] = {}
    for number, picture in enumerate(image if series else [image]):
        place = f'image{number}.' if series else 'image.'
        suffix = 'jpg' if encoding == 'jpeg' else 'tif'
        pixels = picture.numpy()
        files[place + suffix] = (
            _encode_jpeg(pixels, quality)
            if encoding == 'jpeg'
            else _encode_tiff(pixels, encoding)
        )
    rest = {key: _plain(key, v) for key, v in sample.items() if key != 'image'}
    files['json'] = json.dumps(rest, sort_keys=True).encode()
    return files


def decode_sample(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the sample of some files.

    Raises:
        ValueError: If they are not the files of a sample.
    """
    try:
        rest = json.loads(files['json'])
    except KeyError as error:
        raise ValueError(f'the sample has no json, only {sorted(files)}') from error
    names = [name for name in files if name.startswith('image')]
    # image2 comes before image10.
    names.sort(key=lambda name: (len(name), name))
    pictures = [_decode(name, files[name]) for name in names]
    series = names[0][len('image')] != '.'
    image = torch.stack(pictures) if series else pictures[0]
    return {'image': image} | {key: _tensor(value) for key, value in rest.items()}


def _encode_jpeg(pixels: NDArray[np.float32], quality: int) -> bytes:
    if len(pixels) != 3 or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(
            f'an image of {len(pixels)} bands from {pixels.min()} to {pixels.max()}'
            f' cannot become a JPEG, which has 3 bands from 0 to 255: pass'
            f" encoding='integer'"
        )
    whole = np.rint(pixels).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    # Colour at half resolution: with the same error, a file of higher quality with such
    # colour decodes faster than one with colour at full resolution.
    Image.fromarray(whole).save(file, 'jpeg', quality=quality, subsampling='4:2:0')
    return file.getvalue()


def _encode_tiff(pixels: NDArray[np.float32], encoding: Encoding) -> bytes:
    if encoding == 'integer':
        pixels = np.rint(pixels)
        limits = ((name, np.iinfo(name)) for name in _WHOLE)
        kind = next(
            (
                name
                for name, limit in limits
                if limit.min <= pixels.min() and pixels.max() <= limit.max
            ),
            None,
        )
        if kind is None:
            raise ValueError(
                f'values from {pixels.min()} to {pixels.max()} do not fit integers of'
                f" 32 bits: pass encoding='exact'"
            )
    else:
        kind = 'float32'
    bands, height, width = pixels.shape
    profile = {
        'driver': 'GTiff',
        'count': bands,
        'height': height,
        'width': width,
        'dtype': kind,
        'compress': 'deflate',
        'predictor': 3 if kind == 'float32' else 2,
        'interleave': 'band',
    }
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with memory.open(**profile) as file:
            file.write(pixels.astype(kind))
        return memory.read()


def _decode(name: str, data: bytes) -> Tensor:
    if name.endswith('.jpg'):
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels = decode_jpeg(raw, ImageReadMode.RGB)
        # The decoder stores the colours of a pixel side by side (channels last).
        return pixels.to(torch.float32, memory_format=torch.contiguous_format)
    with warnings.catch_warnings(), MemoryFile(data) as memory:
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with open_tiff(memory) as file:
            return torch.from_numpy(file.read().astype(np.float32))


def _plain(key: str, value: Any) -> Any:
    """Return a value for JSON; a tensor with its type and shape."""
    if isinstance(value, Tensor):
        return {
            'dtype': str(value.dtype).removeprefix('torch.'),
            'shape': list(value.shape),
            'values': value.flatten().tolist(),
        }
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(
        f'{key!r} of the sample is a {type(value).__name__}: expected a tensor, a'
        f' number or a text. Leave it out: drop=[{key!r}], or --drop+={key} on the'
        f' command line'
    )


def _tensor(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    flat = torch.tensor(value['values'], dtype=getattr(torch, value['dtype']))
    return flat.reshape(value['shape'])
