"""Data modules in TorchGeo's manner."""

from torchgeo_explora.datamodules.fmow import FMoWRGBDataModule, FMoWTemporalDataModule
from torchgeo_explora.datamodules.fmow_sentinel import FMoWSentinelDataModule
from torchgeo_explora.datamodules.image_folder import ImageFolderDataModule
from torchgeo_explora.datamodules.scenes import ScenesDataModule
from torchgeo_explora.datamodules.synthetic import SyntheticScenesDataModule

__all__ = [
    'FMoWRGBDataModule',
    'FMoWSentinelDataModule',
    'FMoWTemporalDataModule',
    'ImageFolderDataModule',
    'ScenesDataModule',
    'SyntheticScenesDataModule',
]
