"""The commands that explain a backbone: analyze and suggest."""

from pathlib import Path
from typing import Any, Literal

_PICTURES = ('png', 'jpg', 'jpeg', 'pdf', 'svg')


def analyze(
    source: str,
    output: str,
    model: str,
    weights: bool | str = True,
    delta: str | None = None,
    image_size: int | None = None,
    images: int = 256,
    kind: Literal['auto', 'images', 'scenes'] = 'auto',
    bands: list[int | str] | None = None,
    assets: list[str] | None = None,
    in_channels: int | None = None,
    value_range: tuple[Any, Any] | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
) -> None:
    """Measure what every block of a backbone knows, and what a delta changed.

    Writes blocks.csv and pictures; with a delta also changes.csv and the same
    measures of the base.

    Args:
        source: A folder of images, with or without a folder per class; or scenes.
        output: The folder to write into.
        model: Name of a timm model, or the class path of a backbone.
        weights: A file or the name of published weights; timm's own by default.
        delta: The file of a delta for these weights.
        image_size: Side of the images that the model sees; by default that of the
            delta's run, or 224.
        images: Largest number of images.
        kind: Whether a folder holds images or scenes; auto looks at its first raster.
        bands: Names or numbers of the bands, in the model's order.
        assets: Keys of the assets of STAC items, in the order of the bands.
        in_channels: Channels of the model; 3 by default.
        value_range: Lowest and highest value; by default those of the stored type.
        on_error: Whether to stop at what cannot be read, or to leave it out.
    """
    from torchgeo_explora.adapt import load_delta
    from torchgeo_explora.analysis import run, suggest
    from torchgeo_explora.tasks.run.backbone import build_backbone

    def build() -> Any:
        return build_backbone(
            model, weights, in_channels, image_size, delta=delta
        ).eval()

    base = build()
    adapted = None if delta is None else load_delta(build(), delta).eval()
    options = {'bands': bands, 'value_range': value_range, 'on_error': on_error}
    size = image_size or base.image_size[0]
    datamodule = _open(source, kind, size, assets, options)
    reports = run.analyze(
        datamodule, output, base, adapted, images, image_size, value_range
    )
    print(_table(reports))
    try:
        found = suggest(base, reports['base'])
        print(
            f'suggestion for this base: unfreeze: [{found.unfreeze}], rank:'
            f' {found.rank} ({found.share:.1%} of the parameters); `explora suggest`'
            ' has the evidence and other budgets'
        )
    except ValueError as error:
        print(f'no suggestion: {error}')
    print(f'wrote {Path(output)}')


def suggest(
    source: str,
    model: str,
    weights: bool | str = True,
    output: str = 'suggestion.png',
    budget: float = 0.07,
    image_size: int | None = None,
    images: int = 256,
    kind: Literal['auto', 'images', 'scenes'] = 'auto',
    bands: list[int | str] | None = None,
    assets: list[str] | None = None,
    in_channels: int | None = None,
    value_range: tuple[Any, Any] | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
) -> None:
    """Say which block to unfreeze, and which rank of LoRA a budget allows.

    The paper's criterion: in the deeper half of the blocks, take the one whose patch
    tokens have the lowest principal eigenvalues on the new images. The documentation
    page on analysis compares it with an ablation.

    Args:
        source: A folder of images, or scenes; labels are not used.
        model: Name of a timm model, or the class path of a backbone.
        weights: A file or the name of published weights; timm's own by default.
        output: The picture of the evidence: .png, .jpg, .pdf or .svg.
        budget: Largest share of the base's parameters that may be trained.
        image_size: Side of the images that the model sees; 224 by default.
        images: Largest number of images.
        kind: Whether a folder holds images or scenes; auto looks at its first raster.
        bands: Names or numbers of the bands, in the model's order.
        assets: Keys of the assets of STAC items, in the order of the bands.
        in_channels: Channels of the model; 3 by default.
        value_range: Lowest and highest value; by default those of the stored type.
        on_error: Whether to stop at what cannot be read, or to leave it out.
    """
    from torchgeo_explora.analysis import analyze_blocks, pictures
    from torchgeo_explora.analysis import suggest as choose
    from torchgeo_explora.analysis.run import Sample
    from torchgeo_explora.tasks.run.backbone import build_backbone
    from torchgeo_explora.writing import replacing

    picture = Path(output).suffix.lower().removeprefix('.')
    if picture not in _PICTURES:
        raise ValueError(
            f'*output* {output} is not the name of a picture: end it in one of'
            f' {", ".join(f".{name}" for name in _PICTURES)}'
        )
    base = build_backbone(model, weights, in_channels, image_size).eval()
    options = {'bands': bands, 'value_range': value_range, 'on_error': on_error}
    size = image_size or base.image_size[0]
    datamodule = _open(source, kind, size, assets, options)
    sample = Sample(datamodule, images)
    blocks = analyze_blocks(base, sample.batches(base, image_size, value_range))
    found = choose(base, blocks, budget)
    figure = pictures.evidence(blocks, found)
    with replacing(output) as part:
        figure.savefig(part, dpi=120, format=picture)
    depth = len(blocks)
    print('mean principal eigenvalue of the deep half, lowest first:')
    for index in found.order:
        block = blocks[index]
        print(
            f'  block {index} ({index + 1} of {depth}): {block.eigenvalue_mean:.3g}'
            f' (standard deviation {block.eigenvalue_sd:.3g})'
        )
    print(
        f'unfreeze: [{found.unfreeze}]\nrank: {found.rank}\n'
        f'{found.parameters / 1e6:.2f} M parameters trained, {found.share:.1%} of the'
        f' base (budget {budget:.1%})\nwrote {output}'
    )


def _open(
    source: str,
    kind: Any,
    size: int,
    assets: list[str] | None,
    options: dict[str, Any],
) -> Any:
    """Return the data module of a folder of images or of scenes, at one size."""
    from torchgeo_explora.export.imagery.embeddings import open_source

    scenes = {'size': size, 'assets': assets or ()}
    return open_source(source, kind, scenes, {'size': size}, options)


def _table(reports: Any) -> str:
    """Return the numbers of an analysis as lines of text."""
    heading = (
        *('model   ', ' block', '  eigenvalue', '  position', '   class'),
        *('  entropy', '  distance'),
    )
    lines = [''.join(heading)]
    for model, blocks in reports.items():
        for block in blocks:
            known = block.class_accuracy
            label = f'{known:8.3f}' if known is not None else f'{"-":>8}'
            lines.append(
                f'{model:8}{block.block:6}{block.eigenvalue_mean:12.3g}'
                f'{block.position_accuracy:10.3f}{label}'
                f'{block.attention_entropy:9.3f}{block.attention_distance:10.2f}'
            )
    return '\n'.join(lines)
