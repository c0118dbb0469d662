"""The commands on files of deltas, weights and data."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser

# Heavy libraries are imported by the command that needs them, so that help is quick.

Format = Literal[
    'timm',
    'dinov2',
    'torchgeo',
    'torchgeo-segmentation',
    'transformers',
    'peft',
    'peft-transformers',
    'onnx',
]
Encoding = Literal['auto', 'jpeg', 'integer', 'exact']


def info(files: list[str]) -> None:
    """Print what files of deltas or weights say of themselves.

    Args:
        files: Files, or folders, of which every safetensors file is described.
    """
    from torchgeo_explora.export.info import describe

    for path in map(Path, files):
        found = sorted(path.glob('**/*.safetensors')) if path.is_dir() else [path]
        if not found:
            raise ValueError(f'the folder {path} has no safetensors file: name files')
        for file in found:
            print(describe(file))


def merge(delta: str, output: str, weights: str | None = None) -> None:
    """Fold a delta into its base: plain safetensors in timm's names.

    Args:
        delta: The delta's file, or the checkpoint of a fine-tuned classifier.
        output: The file to write.
        weights: The base's weights: a file, or the name of published weights such as
            ExploraWeights.FMOW_RGB. If not given, timm's own for a delta, and those
            that a checkpoint was trained with.
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
        file: A delta's file, the output of `explora merge`, or the checkpoint of a
            fine-tuned classifier (ExploraClassificationTask).
        output: The file to write; a folder for transformers and peft.
        format: What to write. A peft folder holds the delta alone; of a fine-tuned
            classifier, torchgeo has the head too.
        weights: The base's weights: a file, or the name of published weights such as
            ExploraWeights.FMOW_RGB. If not given, timm's own for a delta, and those
            that a checkpoint was trained with.
        model: For torchgeo: the name by which timm builds the model, if it cannot be
            found.
    """
    from torchgeo_explora import export as exports
    from torchgeo_explora.export.finetuned import reload

    head: dict[str, Any] = {}
    if Path(file).suffix == '.ckpt':
        task = reload(file, weights)
        backbone = task.backbone
        head = {'head': task.head.linear, 'task': task.hparams['task']}
    else:
        backbone = _backbone(file, weights)
    if format == 'torchgeo':
        name = exports.export_torchgeo(backbone, output, model, **head)
        print(f'wrote {output}: model: {name}, weights: {output}')
        return
    if format == 'torchgeo-segmentation':
        name = exports.export_torchgeo_segmentation(backbone, output, model)
        print(f'wrote {output}: model: dpt, backbone: {name}, weights: {output}')
        return
    write: dict[str, Callable[[Any, str], None]] = {
        'timm': exports.export_timm,
        'dinov2': exports.export_dinov2,
        'transformers': exports.export_transformers,
        'peft': exports.export_peft,
        'peft-transformers': exports.export_peft_transformers,
        'onnx': exports.export_onnx,
    }
    write[format](backbone, output)
    print(f'wrote {output}')


def _backbone(file: str, weights: str | None) -> Any:
    from torchgeo_explora.export.info import is_delta
    from torchgeo_explora.export.rebuild import rebuild, reopen

    if is_delta(Path(file)):
        return rebuild(file, weights or True)
    return reopen(file)


def diff(first: str, second: str) -> int:
    """Print in what two deltas or files of weights differ.

    Returns 1 if they differ, as `diff` does.

    Args:
        first: A file.
        second: Another.
    """
    from torchgeo_explora.export.info import differences

    lines = differences(first, second)
    print('\n'.join(lines) or 'no difference')
    return 1 if lines else 0


def average(deltas: list[str], output: str, shares: list[float] | None = None) -> None:
    """Write the mean of several deltas of one base as a delta.

    Args:
        deltas: Their files.
        output: The file to write.
        shares: Share of each, sum 1; equal if not given.
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
        delta: The delta's file.
        repo: Name of the repository, user/name; it is made.
        base: Where the base's weights come from, for the card.
        data: What it was trained on, for the card.
        scores: What was measured, by name, for the card.
        licence: Identifier of the Hub, such as cc-by-nc-4.0; the base's if not given.
        public: Whether a repository that is made can be seen by all.
    """
    from torchgeo_explora.export import push_to_hub

    print(push_to_hub(delta, repo, base, data, scores, licence, not public))


def pull(repo: str, output: str, revision: str | None = None) -> None:
    """Download a delta from the Hugging Face Hub.

    Args:
        repo: Name of the repository, user/name.
        output: The file to write.
        revision: Commit, branch or tag; the newest if not given.
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
    """Write a data set in a compact form that is read many times faster.

    Stopped half-way, the same command goes on where it was.

    Args:
        dataset: Class of the data set: one of this package, such as FMoWRGB, or a full
            path, such as torchgeo.datasets.RESISC45.
        output: Folder to write, one for each split.
        options: Arguments of the data set, each as --options.NAME VALUE: root, split,
            size and so on.
        encoding: jpeg (8 bits, lossy), integer (rounded to whole numbers), exact
            (float32 bit by bit), or auto: jpeg for true colour of 8 bits, integer for
            larger values, exact for small ones.
        quality: Of JPEG, 1 to 100.
        samples_per_shard: Samples in a shard. A stream needs at least as many shards as
            there are processes times workers.
        workers: Processes that encode; 0 for one.
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
            f'*dataset* is {name}, which is no class: give one of this package, such'
            f' as FMoWRGB, or a full path'
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
    """Compare every byte of prepared folders with what was written.

    Returns 1 if one was damaged.

    Args:
        folders: The folders.
    """
    from torchgeo_explora.datasets import verify as damage

    lines = [line for folder in folders for line in damage(folder)]
    print('\n'.join(lines) or 'every byte is as it was written')
    return 1 if lines else 0


def completion() -> None:
    """Print a script that lets bash complete the words of this command."""
    from torchgeo_explora.cli.completion import bash_script

    print(bash_script())


#: Each command, and which of its arguments need no name.
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
    completion: (),
}
