"""The commands on files of deltas, weights and data."""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser

from torchgeo_explora.cli import imagery
from torchgeo_explora.cli.analyze import analyze, suggest
from torchgeo_explora.cli.report import compare, report

# Heavy libraries are imported by the command that needs them, so that help is quick.

Format = Literal[
    'timm',
    'timm-folder',
    'dinov2',
    'dinov3',
    'torchgeo',
    'torchgeo-segmentation',
    'torchgeo-change',
    'transformers',
    'peft',
    'peft-transformers',
    'onnx',
]
Encoding = Literal['auto', 'jpeg', 'integer', 'exact']


def wants_traceback() -> bool:
    """Return whether the environment asks for tracebacks instead of sentences."""
    return os.environ.get('JSONARGPARSE_DEBUG', '').lower() == 'true'


def info(files: list[str]) -> None:
    """Summarise files of deltas, checkpoints or weights.

    Args:
        files: Files, or folders whose safetensors files are all summarised.
    """
    from torchgeo_explora.export.info import summarize_file

    for path in map(Path, files):
        found = sorted(path.glob('**/*.safetensors')) if path.is_dir() else [path]
        if not found:
            raise ValueError(f'the folder {path} has no safetensors file: name files')
        for file in found:
            print(summarize_file(file))


def merge(delta: str, output: str, weights: str | None = None) -> None:
    """Merge a delta into its base, and write safetensors with timm's names.

    Args:
        delta: The file of a delta, or the checkpoint of a fine-tuned classifier.
        output: The file to write.
        weights: Weights of the base: a file, or the name of published weights such as
            ExploraWeights.FMOW_RGB. The default is timm's own weights for a delta, and
            for a checkpoint the weights that it was trained with.
    """
    export(delta, output, 'timm', weights)


def export(
    file: str,
    output: str,
    format: Format = 'timm',
    weights: str | None = None,
    model: str | None = None,
) -> None:
    """Write a backbone for another library.

    Args:
        file: The file of a delta, the output of `explora merge`, or the checkpoint of
            a fine-tuned classifier (ExploraClassificationTask).
        output: The file to write; a folder for timm-folder, transformers, peft and
            peft-transformers.
        format: What to write. A peft folder holds only the delta. The torchgeo format
            includes the head of a fine-tuned classifier.
        weights: Weights of the base: a file, or the name of published weights such as
            ExploraWeights.FMOW_RGB. The default is timm's own weights for a delta, and
            for a checkpoint the weights that it was trained with.
        model: For the torchgeo formats, the timm name of the model, if it is not found
            automatically.
    """
    from torchgeo_explora import export as exports

    head: dict[str, Any] = {}
    if Path(file).suffix == '.ckpt':
        task = _finetuned(file, weights)
        backbone = task.backbone
        head = {'head': task.head.linear, 'task': task.hparams['task']}
    else:
        backbone = _backbone(file, weights)
    if format == 'torchgeo':
        name = exports.export_torchgeo(backbone, output, model, **head)
        print(f'wrote {output}: model: {name}, weights: {output}')
        return
    if format in ('torchgeo-segmentation', 'torchgeo-change'):
        dates = 2 if format == 'torchgeo-change' else 1
        name = exports.export_torchgeo_segmentation(backbone, output, model, dates)
        print(f'wrote {output}: model: dpt, backbone: {name}, weights: {output}')
        return
    write: dict[str, Callable[[Any, str], None]] = {
        'timm': exports.export_timm,
        'timm-folder': exports.export_timm_folder,
        'dinov2': exports.export_dinov2,
        'dinov3': exports.export_dinov3,
        'transformers': exports.export_transformers,
        'peft': exports.export_peft,
        'peft-transformers': exports.export_peft_transformers,
        'onnx': exports.export_onnx,
    }
    write[format](backbone, output)
    print(f'wrote {output}')


def _finetuned(file: str, weights: str | None) -> Any:
    """Return the `ExploraClassificationTask` of a checkpoint, with base and delta."""
    from torchgeo_explora.models.formats.files import read_file

    content = read_file(Path(file))
    options, tensors = content.get('hyper_parameters'), content.get('state_dict')
    kind = options.get('_class_path', '') if isinstance(options, dict) else None
    known = str(kind).rpartition('.')[2] in ('', 'ExploraClassificationTask')
    if not known or 'head.linear.weight' not in (tensors or ()):
        raise ValueError(
            f'{file} is not a checkpoint of an ExploraClassificationTask: after'
            ' pre-training, give the delta beside it (.safetensors); for another task,'
            ' load the task in Python and export its backbone'
        )
    from torchgeo_explora.tasks import ExploraClassificationTask

    given: Any = {} if weights is None else {'weights': weights}
    return ExploraClassificationTask.load_from_checkpoint(
        Path(file), map_location='cpu', **given
    ).eval()


def _backbone(file: str, weights: str | None) -> Any:
    """Return the backbone of a delta, or of a file that `export_timm` wrote."""
    from torchgeo_explora.export.info import is_delta
    from torchgeo_explora.export.rebuild import rebuild, reopen

    if is_delta(Path(file)):
        return rebuild(file, weights or True)
    return reopen(file)


def diff(first: str, second: str) -> int:
    """Print how two deltas or files of weights differ.

    The exit code is 1 if they differ, as for `diff`.

    Args:
        first: A file.
        second: The file to compare it with.
    """
    from torchgeo_explora.export.info import compare_files

    lines = compare_files(first, second)
    print('\n'.join(lines) or 'no difference')
    return 1 if lines else 0


def average(deltas: list[str], output: str, shares: list[float] | None = None) -> None:
    """Write the mean of several deltas of one base as a delta.

    Args:
        deltas: Files of the deltas.
        output: The file to write.
        shares: Share of each delta in the mean, adding up to 1; equal by default.
    """
    from torchgeo_explora.adapt import average_deltas

    average_deltas(deltas, output, shares)
    print(f'wrote {output}')


def push(
    delta: str,
    repo: str,
    base: str,
    data: str,
    scores: dict[str, float] | None = None,
    licence: str | None = None,
    public: bool = False,
) -> None:
    """Upload a delta to the Hugging Face Hub, with a card.

    Args:
        delta: The file of the delta.
        repo: Name of the repository, user/name; it is created if needed.
        base: Where the weights of the base come from, for the card.
        data: What the delta was trained on, for the card.
        scores: Measured scores by name, for the card.
        licence: Licence in the Hub's spelling, such as cc-by-nc-4.0; the default is
            the licence of the base.
        public: Whether a new repository is public.
    """
    from torchgeo_explora.export import push_to_hub

    print(push_to_hub(delta, repo, base, data, scores, licence, not public))


def pull(repo: str, output: str, revision: str | None = None) -> None:
    """Download a delta from the Hugging Face Hub.

    Args:
        repo: Name of the repository, user/name.
        output: The file to write.
        revision: Commit, branch or tag; the latest by default.
    """
    import shutil

    from torchgeo_explora.export import from_hub
    from torchgeo_explora.writing import replacing

    file = from_hub(repo, revision)
    with replacing(output) as part:
        shutil.copyfile(file, part)
    print(f'wrote {output}')


def prepare(
    dataset: str,
    output: str,
    options: dict[str, str | list[Any] | None] | None = None,
    encoding: Encoding = 'auto',
    quality: int = 90,
    samples_per_shard: int = 2000,
    workers: int = 0,
    drop: list[str] | None = None,
) -> None:
    """Write a data set in a compact form that can be read many times faster.

    If it is interrupted, the same command continues where it stopped.

    Args:
        dataset: Class of the data set: one of this package, such as FMoWRGB, or a full
            path, such as torchgeo.datasets.RESISC45.
        output: The folder to write; each split needs its own.
        options: Arguments of the data set, each as --options.NAME VALUE: root, split,
            size and so on.
        encoding: jpeg (8 bits, lossy), integer (rounded to whole numbers), exact
            (float32, bit for bit), or auto: jpeg for 8-bit true colour, integer for
            larger values, exact for small ones.
        quality: JPEG quality, 1 to 100.
        samples_per_shard: Number of samples in a shard. A stream needs at least one
            shard for each worker of each process.
        workers: Number of extra processes that encode; with 0 the main process does.
        drop: Keys of the samples to leave out, each as --drop+=KEY.
    """
    from torchgeo_explora import datasets

    raw = _dataset(dataset, options or {})
    folder = datasets.prepare(
        raw,
        output,
        encoding,
        quality,
        samples_per_shard,
        workers,
        drop=drop or (),
    )
    print(f'wrote {folder}: {len(datasets.Prepared(folder))} samples')


def _dataset(name: str, options: dict[str, str | list[Any] | None]) -> Any:
    module, _, kind = name.rpartition('.')
    found = getattr(import_module(module or 'torchgeo_explora.datasets'), kind, None)
    if found is None:
        raise ValueError(
            f'*dataset* {name} is not a class: give one of this package, such as'
            ' FMoWRGB, or a full path'
        )
    given = ArgumentParser(exit_on_error=False)
    given.add_class_arguments(found, 'options')
    try:
        config = given.parse_args(
            [f'--options.{k}={"null" if v is None else v}' for k, v in options.items()]
        )
    except ArgumentError as error:
        raise ValueError(f'{name}: {error}') from error
    return given.instantiate_classes(config).options


def verify(folders: list[str]) -> int:
    """Check prepared folders against the checksums of what was written.

    The exit code is 1 if a file is damaged.

    Args:
        folders: Folders that `explora prepare` wrote.
    """
    from torchgeo_explora.datasets import verify as damages

    lines = [line for folder in folders for line in damages(folder)]
    print('\n'.join(lines) or 'every byte is as it was written')
    return 1 if lines else 0


def completion() -> None:
    """Print a bash script that completes this command."""
    from torchgeo_explora.cli.completion import bash_script

    print(bash_script())


#: Each command, with its positional arguments.
COMMANDS: dict[Callable[..., int | None], tuple[str, ...]] = {
    info: ('files',),
    merge: ('delta', 'output'),
    export: ('file', 'output'),
    diff: ('first', 'second'),
    average: ('deltas',),
    push: ('delta', 'repo'),
    pull: ('repo', 'output'),
    prepare: ('dataset', 'output'),
    verify: ('folders',),
    imagery.embed: ('source', 'output'),
    imagery.search: ('file', 'query'),
    imagery.map: ('source', 'output'),
    analyze: ('source', 'output'),
    suggest: ('source',),
    report: ('run',),
    compare: ('runs',),
    completion: (),
}
