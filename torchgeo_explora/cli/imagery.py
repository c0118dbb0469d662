"""The commands on images and scenes: embed, search and map."""

from typing import Any, Literal


def embed(
    source: str,
    output: str,
    model: str,
    weights: bool | str = True,
    delta: str | None = None,
    image_size: int | None = None,
    window: int | None = None,
    pooling: Literal['cls', 'mean', 'both'] | None = None,
    dtype: Literal['float32', 'float16', 'int8'] = 'float32',
    kind: Literal['auto', 'images', 'scenes'] = 'auto',
    bands: list[int | str] | None = None,
    assets: list[str] | None = None,
    in_channels: int | None = None,
    value_range: tuple[Any, Any] | None = None,
    nodata: float | None = None,
    mask: str | None = None,
    crs: str | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
    batch_size: int = 64,
    num_workers: int = 0,
    share: str = '0/1',
    overwrite: bool = False,
    devices: int = 1,
    num_nodes: int = 1,
    precision: str | None = None,
) -> None:
    """Write embeddings of images, or of all windows of scenes as GeoParquet.

    If it is interrupted, the same command continues where it stopped.

    Args:
        source: A folder of images; or a scene, a folder of scenes, a pattern, a VRT or
            a .json file of STAC items.
        output: The file to write.
        model: Name of a timm model, or the class path of a backbone.
        weights: A file or the name of published weights; timm's own by default.
        delta: The file of a delta for these weights.
        image_size: Side of the images that the model sees; by default that of the
            delta's run, or 224.
        window: Side of the windows of scenes in pixels; image_size by default.
        pooling: The class token, the mean of the patch tokens, or both; by default what
            the delta was evaluated with, or what suits the weights.
        dtype: Type of the values; int8 has a column of scales.
        kind: Whether a folder holds images or scenes; auto looks at its first raster.
        bands: Names or numbers of the bands, in the model's order.
        assets: Keys of the assets of STAC items, in the order of the bands.
        in_channels: Channels of the model; 3 by default.
        value_range: Lowest and highest value; by default those of the stored type.
        nodata: Value of pixels without data, if scenes do not declare it.
        mask: What replaces a scene's suffix in the name of its cloud mask, such as
            _cloud.tif; these files are not read as scenes.
        crs: Coordinate system of the geometries; by default that of the scenes, or
            longitude and latitude if they have several.
        on_error: Whether to stop at what cannot be read, or to leave it out.
        batch_size: Number of images at once.
        num_workers: Number of processes that read images.
        share: For jobs that Lightning does not start, which part of the work to do,
            such as 0/4; without it, the parts of all jobs are joined.
        overwrite: Whether to replace the output.
        devices: Number of GPUs, or of processes on a CPU.
        num_nodes: Number of machines, if Lightning runs on several.
        precision: Lightning's precision, such as bf16-mixed; float32 by default.
    """
    from torchgeo_explora import export

    written = export.embed(
        source,
        output,
        model,
        weights,
        delta,
        image_size,
        window=window,
        pooling=pooling,
        dtype=dtype,
        kind=kind,
        bands=bands,
        assets=assets or (),
        in_channels=in_channels,
        value_range=value_range,
        nodata=nodata,
        mask=mask,
        crs=crs,
        on_error=on_error,
        batch_size=batch_size,
        num_workers=num_workers,
        share=share,
        overwrite=overwrite,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
    )
    if share == '0/1':
        print(f'wrote {written}')


def search(
    file: str,
    query: str,
    output: str = 'search.geojson',
    k: int = 20,
    model: str | None = None,
    weights: bool | str = True,
    delta: str | None = None,
    bands: list[int | str] | None = None,
) -> None:
    """Find the images or windows that are most like an example.

    Writes GeoJSON, and beside it a contact sheet, a .png of the same name.

    Args:
        file: A file that `explora embed` wrote.
        query: An image, a point as longitude,latitude, or a text file with one of these
            on each line; relative paths in it start at its folder.
        output: The GeoJSON file to write.
        k: Number of results.
        model: The model that the file was written with, for images.
        weights: The weights of that model.
        delta: The delta of that model.
        bands: Names or numbers of the bands of images; by default those that the file
            was written with, if an image has bands of these names.
    """
    from torchgeo_explora import export

    found = export.search(file, query, output, k, model, weights, delta, bands=bands)
    for rank, row in enumerate(found, 1):
        name = row.get('scene', row.get('path', row['index']))
        place = f' {row["column"]},{row["row"]}' if 'column' in row else ''
        print(f'{rank:3} {row["similarity"]:.4f} {name}{place}')
    print(f'wrote {output} and its contact sheet')


def map(
    source: str,
    output: str,
    model: str | None = None,
    weights: bool | str = True,
    delta: str | None = None,
    image_size: int | None = None,
    checkpoint: str | None = None,
    components: int | None = None,
    channels: list[int] | None = None,
    bands: list[str] | None = None,
    assets: list[str] | None = None,
    value_range: tuple[Any, Any] | None = None,
    nodata: float | None = None,
    block: int | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
    num_workers: int = 0,
    overwrite: bool = False,
    devices: int = 1,
    num_nodes: int = 1,
    precision: str | None = None,
) -> None:
    """Write maps of scenes: patch embeddings, or the classes of a trained task.

    If it is interrupted, the same command continues where it stopped.

    Args:
        source: A scene, a folder of scenes, a pattern, a VRT or a .json file of STAC
            items.
        output: The file to write for one scene, .tif; else a folder.
        model: Name of a timm model, or the class path of a backbone, for embeddings.
        weights: A file or the name of published weights; timm's own by default, or
            those that a checkpoint was trained with.
        delta: The file of a delta for these weights.
        image_size: Side of the windows in pixels; by default that of the delta's run,
            or 224.
        checkpoint: A trained task's .ckpt, to map its classes instead.
        components: Number of principal components to write instead of embeddings.
        channels: Numbers of the bands, from 1, in the model's order.
        bands: Names of the bands, in the model's order; if the files do not name them,
            names for those that are read.
        assets: Keys of the assets of STAC items, in the order of the bands.
        value_range: Lowest and highest value; by default those of the stored type.
        nodata: Value of pixels without data, if scenes do not declare it.
        block: Side, in pixels, of the part that is read and kept at once; by default
            2048 for embeddings and 1024 for classes.
        on_error: Whether to stop at a scene that cannot be read, or to leave it out.
        num_workers: Number of processes that read blocks.
        overwrite: Whether to replace maps.
        devices: Number of GPUs, or of processes on a CPU.
        num_nodes: Number of machines, if Lightning runs on several.
        precision: Lightning's precision, such as bf16-mixed; float32 by default.
    """
    from torchgeo_explora import export

    written = export.map_scenes(
        source,
        output,
        model,
        weights,
        delta,
        image_size,
        checkpoint=checkpoint,
        components=components,
        channels=channels,
        bands=bands,
        assets=assets or (),
        value_range=value_range,
        nodata=nodata,
        block=block,
        on_error=on_error,
        num_workers=num_workers,
        overwrite=overwrite,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
    )
    for path in written:
        print(f'wrote {path}')
