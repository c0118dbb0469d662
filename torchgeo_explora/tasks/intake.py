"""Raw batches of TorchGeo's data modules, taken before their own normalisation."""

from typing import Any

from torch import nn

from torchgeo_explora.augment import UnitRange, value_range


def take_over(datamodule: Any) -> None:
    """Make a data module hand out raw sensor values, in place.

    Photometric augmentation works on values in [0, 1], before normalisation. TorchGeo's
    data modules normalise first, on the device: that step becomes the identity.
    """
    for name in ('train_aug', 'val_aug', 'test_aug', 'predict_aug', 'aug'):
        if hasattr(datamodule, name):
            setattr(datamodule, name, nn.Identity())


def unit_range(given: tuple[Any, Any] | None, datamodule: Any) -> UnitRange:
    """Return the map from raw sensor values to [0, 1].

    Args:
        given: (low, high) of the user, scalars or one value per channel.
        datamodule: Tells its range where the user does not.

    Raises:
        ValueError: If neither does.
    """
    if given is not None:
        return UnitRange(*given)
    if datamodule is None:
        raise ValueError(
            'no data module tells the range of the pixel values: give *value_range* as'
            ' [low, high], e.g. [0, 255]'
        )
    return UnitRange(*value_range(datamodule))


def require_predict_set(datamodule: Any) -> None:
    """Raise if a TorchGeo data module has nothing to predict on."""
    names = ('predict_dataset', 'dataset')
    if datamodule is not None and not any(
        getattr(datamodule, name, None) is not None for name in names
    ):
        raise ValueError(
            f'{type(datamodule).__name__} has no predict set, and so gives no'
            ' embeddings: point torchgeo_explora.datamodules.ImageFolderDataModule at'
            ' the folder of images'
        )
