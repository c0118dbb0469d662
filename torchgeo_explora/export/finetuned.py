"""A fine-tuned classifier from the checkpoint of its task."""

import os
from pathlib import Path
from typing import Any

from torchgeo_explora.models.formats.files import read_file


def reload(path: str | os.PathLike[str], weights: str | None = None) -> Any:
    """Return the `ExploraClassificationTask` of a checkpoint, base and deltas in it.

    Args:
        path: A `.ckpt` of that task; its base and its first delta are read from where
            they were when it trained.
        weights: Where the base's weights are, if they have moved.

    Raises:
        FileNotFoundError: If the checkpoint, the base or the first delta is missing.
        ValueError: If it is of another task, or the base is not the one it trained on.
    """
    content = read_file(Path(path))
    hyper = content.get('hyper_parameters', {})
    kind = hyper.get('_class_path', 'ExploraClassificationTask').rpartition('.')[2]
    tensors = content.get('state_dict', {})
    if kind != 'ExploraClassificationTask' or 'head.linear.weight' not in tensors:
        raise ValueError(
            f'{path} is no checkpoint of an ExploraClassificationTask: of pre-training,'
            ' give the delta beside it (.safetensors); of other tasks, load the task in'
            ' Python and export its backbone'
        )
    from torchgeo_explora.tasks import ExploraClassificationTask

    given: Any = {} if weights is None else {'weights': weights}
    return ExploraClassificationTask.load_from_checkpoint(
        Path(path), map_location='cpu', **given
    ).eval()
