"""Search by example in a file of embeddings."""

import json
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any

import shapely  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.nn.functional import normalize

from torchgeo_explora.augment import spell_band
from torchgeo_explora.callbacks.writers.parquet import model_fingerprint
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.datasets.pixels.reader import ImageReader
from torchgeo_explora.datasets.pixels.scaling import RANGES
from torchgeo_explora.export.imagery.contact_sheet import contact_sheet
from torchgeo_explora.export.imagery.embedding_file import EmbeddingFile
from torchgeo_explora.export.imagery.embeddings import own_copy
from torchgeo_explora.functional import nearest
from torchgeo_explora.models import Backbone
from torchgeo_explora.paths import expanded, local_path
from torchgeo_explora.tasks import ExploraKNNTask
from torchgeo_explora.tasks.run.backbone import Model, Weights
from torchgeo_explora.tasks.run.raw_images import RawImages, in_other_units
from torchgeo_explora.writing import replacing

_NUMBER = r'[-+]?\d+(?:\.\d*)?'
_POINT = re.compile(rf'\s*({_NUMBER})\s*,\s*({_NUMBER})\s*')


def search(
    embeddings: str | os.PathLike[str],
    query: str | os.PathLike[str],
    output: str | os.PathLike[str] = 'search.geojson',
    k: int = 20,
    model: Model | None = None,
    weights: Weights = True,
    delta: str | os.PathLike[str] | None = None,
    *,
    bands: Sequence[int | str] | None = None,
) -> list[dict[str, Any]]:
    """Find the images or windows that are most like an example.

    Similarity is the cosine of embeddings; every embedding is compared. The windows at
    a point are not among the results. Beside *output*, a contact sheet `.png`
    shows the examples and the results, from the images and scenes that *embeddings*
    names, if these are files on this machine.

    Args:
        embeddings: A file that `embed` wrote.
        query: An image; a point as 'longitude,latitude', which stands for the windows
            there; or a text file with one of these on each line, whose mean direction
            is searched for. Its relative paths start at its own folder.
        output: The GeoJSON file to write.
        k: Number of results; fewer if the file does not have that many.
        model: The model that *embeddings* was written with, for images.
        weights: Its weights.
        delta: Its delta.
        bands: Names or numbers of the bands to read from images. If None, those that
            *embeddings* was written with if an image has bands with these names,
            otherwise all.

    Returns:
        The results, best first: the columns of the file without embeddings, and
        `similarity`; `geometry` is a shapely geometry in longitude and latitude.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If the query cannot be used, or the model is another one.
    """
    if k < 1:
        raise ValueError(f'*k* is {k}: give 1 or more')
    target = local_path('output', output)
    if target.suffix.lower() == '.png':
        raise ValueError(
            f'*output* {target} is where the contact sheet goes: give a .geojson file'
        )
    file = EmbeddingFile(embeddings)
    examples = _examples(os.fspath(query))
    points = [each for each in examples if isinstance(each, tuple)]
    images = [each for each in examples if not isinstance(each, tuple)]
    known = sorted({number for point in points for number in file.at(*point)})
    vectors = [file.vectors_of(known)] if known else []
    if images:
        if model is None:
            raise ValueError(
                f'{images[0]} has to be embedded: give the *model* and *weights* that'
                f' {file.path} was written with'
            )
        embedder = _embedder(file, model, weights, delta)
        vectors += [_embed_image(embedder, image, file, bands) for image in images]
    wanted = normalize(torch.cat(vectors).mean(0, keepdim=True), dim=1)
    similarities, places = nearest(file.vectors(), wanted, k + len(known))
    found = [
        (float(similarity), place)
        for similarity, place in zip(similarities[0], places[0].tolist(), strict=True)
        if place not in known
    ][:k]
    if len(found) < k:
        warnings.warn(
            f'{file.path} has only {len(found)} embeddings apart from the examples: *k*'
            f' is reduced from {k}',
            stacklevel=2,
        )
    rows = file.rows([place for _, place in found])
    results = [
        {'similarity': similarity, **row}
        for (similarity, _), row in zip(found, rows, strict=True)
    ]
    with replacing(target) as part:
        part.write_text(json.dumps(_geojson(results), indent=1), encoding='utf-8')
    shown = [*({'path': image} for image in images), *file.rows(known)]
    with replacing(target.with_suffix('.png')) as part:
        contact_sheet(shown, results).save(part, format='png')
    return results


def _examples(query: str) -> list[str | tuple[float, float]]:
    """Return the images and points of a query.

    Raises:
        FileNotFoundError: If it is neither a point nor a file.
        ValueError: If a point is not on the Earth, or there is no example.
    """
    given = _example(query)
    if not isinstance(given, str) or not given.lower().endswith('.txt'):
        return [given]
    # Some editors on Windows start a text file with a byte order mark.
    with open(given, encoding='utf-8-sig') as file:
        lines = [line.strip() for line in file]
    folder = os.path.dirname(given)
    found = [
        _example(line, folder) for line in lines if line and not line.startswith('#')
    ]
    if not found:
        raise ValueError(
            f'{given} has no examples: write an image or longitude,latitude on each'
            ' line'
        )
    return found


def _example(query: str, folder: str = '') -> str | tuple[float, float]:
    """Return a point, or the path of a file; a relative one starts at *folder*."""
    if match := _POINT.fullmatch(query):
        longitude, latitude = float(match[1]), float(match[2])
        if abs(longitude) > 180 or abs(latitude) > 90:
            raise ValueError(
                f'the point {query.strip()} is not on the Earth: give'
                ' longitude,latitude in degrees'
            )
        return longitude, latitude
    path = os.path.join(folder, expanded(query.strip()))
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f'*query* {query} is neither a point nor a file ({path} does not exist):'
            ' give an image, a text file of examples, or longitude,latitude'
        )
    return path


def _embedder(
    file: EmbeddingFile,
    model: Model,
    weights: Weights,
    delta: str | os.PathLike[str] | None,
) -> ExploraKNNTask:
    """Return the model that a file was written with.

    Raises:
        ValueError: If it is another one.
    """
    # Other backbones know their channels and do not take a number of them.
    by_name = isinstance(model, str) and Backbone.kind(model) is None
    embedder = ExploraKNNTask(
        pooling=file.notes['pooling'],
        model=own_copy(model),
        weights=weights,
        delta=None if delta is None else os.fspath(delta),
        image_size=file.notes['image_size'],
        in_channels=file.notes.get('in_channels') if by_name else None,
    ).eval()
    fingerprint = model_fingerprint(embedder.backbone)
    if fingerprint != file.notes['fingerprint']:
        raise ValueError(
            f'{file.path} was written with the model {file.notes["fingerprint"]:.12},'
            f' this one is {fingerprint:.12}: give the same weights and delta'
        )
    return embedder


@torch.no_grad()
def _embed_image(
    embedder: ExploraKNNTask,
    path: str,
    file: EmbeddingFile,
    bands: Sequence[int | str] | None,
) -> Tensor:
    """Return the L2-normalised embedding of an image file, (1, D)."""
    backbone = embedder.backbone
    try:
        header = ImageReader(None).header(path)
        wanted = bands or _bands_of(file, header.bands)
        # The range below counts; other types have no usual range, so any will do.
        usual = RANGES.get(header.dtype)
        reader = ImageReader(embedder.image_size, wanted, None if usual else (0, 1))
        reader.choose([header])
        image, _ = reader.read(path)
    except UnreadableImageError as error:
        raise UnreadableImageError(f'{error}, or give another *query*') from error
    value_range = file.notes['value_range']
    if usual and reader.range_known and in_other_units(usual, value_range):
        value_range = usual
    raw_images = RawImages(backbone, reader, value_range)
    if not hasattr(raw_images.select, 'indices') and len(image) != backbone.in_channels:
        raise ValueError(
            f'{path} has {len(image)} bands, but the model takes'
            f' {backbone.in_channels}: choose them with *bands*'
        )
    try:
        unit = raw_images(image[None])
    except ValueError as error:
        raise ValueError(
            f'{path} has values from {image.min():.4g} to {image.max():.4g}, but the'
            f' images of {file.path} range from {value_range[0]} to {value_range[1]}:'
            ' give an image of the same sensor and scale'
        ) from error
    features = embedder.features(embedder.view(unit), {})
    return normalize(features.pooled(embedder.pooling).float(), dim=1)


def _bands_of(file: EmbeddingFile, names: Sequence[str]) -> list[str] | None:
    """Return the bands of an image that a file was written with.

    Args:
        file: The embeddings; files of earlier versions do not name their bands.
        names: Names of the image's bands.

    Returns:
        Their names, or None if the image does not have each of them exactly once.
    """
    have = [spell_band(name) for name in names]
    need = [spell_band(name) for name in file.notes.get('bands') or ()]
    if not need or any({have.count(n), need.count(n)} != {1} for n in need):
        return None
    return [names[have.index(name)] for name in need]


def _geojson(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return results as GeoJSON (RFC 7946)."""
    features = []
    for rank, row in enumerate(results, 1):
        shape = row.get('geometry')
        properties = {
            key: value if isinstance(value, str | int | float | None) else str(value)
            for key, value in row.items()
            if key not in ('geometry', 'bbox', 'bounds')
        }
        features.append(
            {
                'type': 'Feature',
                'geometry': None if shape is None else shapely.geometry.mapping(shape),
                'properties': {'rank': rank, **properties},
            }
        )
    return {'type': 'FeatureCollection', 'features': features}
