"""The pictures of a run, made small enough to be part of a page."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

#: Bytes of all pictures of a page, as embedded in it.
BUDGET = 3_500_000
_WIDEST = 1500
_MOST = 24
_SPLITS = {'test': 'test', 'val': 'validation'}
#: What the pictures of runs and of `explora analyze` show, in the order of the page.
_SHOWN = {
    'crops': 'Crops: what augmentation does to images of the run.',
    'pca': 'Patch features before and after the run, coloured by their first three'
    ' principal components; colours can be compared within a row.',
    'reconstructions': 'Images, what was hidden in them, and what the model predicts.',
    'neighbours': 'Images and their nearest neighbours, before and after.',
    'map': 'Map of the embeddings before and after: similar images lie together.',
    'attention': 'Attention of the class token in several blocks.',
    'features': 'Patch features in several blocks, coloured by their principal'
    ' components.',
    'curves': 'Measures of each block: principal eigenvalues, what a patch tells about'
    ' its position and its class, and where attention goes. See also blocks.csv.',
    'changes': 'Relative change of each layer in each block.',
    **{
        f'confusion_{split}': f'Confusion matrix of the {words}: each row shows shares'
        f' of a true class. confusion_{split}.csv has the counts.'
        for split, words in _SPLITS.items()
    },
    # Version 0.1 did not name the split.
    'confusion': 'Confusion matrix: each row shows shares of a true class.',
    **{
        f'worst_{split}': f'Worst examples of the {words}: the images with the highest'
        ' losses, with the truth and the prediction.'
        f' worst_{split}.csv lists them.'
        for split, words in _SPLITS.items()
    },
    'segmentation': 'Images, the true and the predicted class of each pixel.',
}


class Picture(NamedTuple):
    """A picture as part of a page."""

    source: str
    """A data URI."""
    alt: str
    """What it shows."""
    width: int
    height: int

    @property
    def broad(self) -> bool:
        """Whether it would be too small to read on a phone."""
        return self.width > 3 * self.height


def read_pictures(folder: Path) -> tuple[list[Picture], list[str]]:
    """Return the pictures of a run's folder and of its folder `analysis`.

    They shrink until all of them fit into `BUDGET`.

    Args:
        folder: Folder of the run.

    Returns:
        The pictures, known kinds first, and sentences on what is wrong with others.
    """
    paths = [*sorted(folder.glob('*.png')), *sorted(folder.glob('analysis/*.png'))]
    # The page draws its own curves.
    paths = [path for path in paths if path.stem != 'curves' or path.parent != folder]
    order = [*_SHOWN]
    paths.sort(key=lambda p: order.index(p.stem) if p.stem in order else len(order))
    problems = []
    if len(paths) > _MOST:
        problems.append(f'Only the first {_MOST} of {len(paths)} pictures are shown.')
    opened = []
    for path in paths[:_MOST]:
        try:
            with Image.open(path, formats=['PNG']) as image:
                opened.append((path, _flat(image)))
        # A damaged picture may raise anything.
        except Exception as error:  # noqa: BLE001
            kind = type(error).__name__
            problems.append(f'{path.name} is not a picture that can be read ({kind}).')
    width = _WIDEST
    while True:
        found = [_small(path, image, width) for path, image in opened]
        if sum(len(each.source) for each in found) <= BUDGET or width < 200:
            return found, problems
        width = round(width * 0.75)


def _flat(image: Image.Image) -> Image.Image:
    """Return a picture without transparency, reduced to at most `_WIDEST` wide."""
    image = image.convert('RGBA')
    image.thumbnail((_WIDEST, 2 * _WIDEST))
    white = Image.new('RGBA', image.size, 'white')
    return Image.alpha_composite(white, image).convert('RGB')


def _small(path: Path, image: Image.Image, width: int) -> Picture:
    image = image.copy()
    image.thumbnail((width, 2 * width))
    content, kind = b'', ''
    # Photographs are smaller as JPEG, diagrams as PNG.
    for each, options in (
        ('jpeg', {'quality': 82, 'optimize': True}),
        ('png', {'optimize': True}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, each, **options)
        if not content or len(buffer.getvalue()) < len(content):
            content, kind = buffer.getvalue(), each
    source = f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
    alt = _SHOWN.get(path.stem, f'Picture {path.name} of the run.')
    return Picture(source, alt, *image.size)
