"""Data modules in TorchGeo's manner."""

from torchgeo_explora.datamodules.fmow import (
    FMoWRGBDataModule,
    FMoWSentinelDataModule,
    FMoWTemporalDataModule,
)
from torchgeo_explora.datamodules.naip import NAIPLandCoverDataModule
from torchgeo_explora.datamodules.own_images import CSVDataModule, ImageFolderDataModule
from torchgeo_explora.datamodules.prepared import PreparedDataModule
from torchgeo_explora.datamodules.raster_scene import RasterSceneDataModule
from torchgeo_explora.datamodules.scenes import ScenesDataModule
from torchgeo_explora.datamodules.synthetic import SyntheticScenesDataModule
from torchgeo_explora.datamodules.wilds import (
    Camelyon17DataModule,
    GlobalWheatDataModule,
    IWildCamDataModule,
)

__all__ = [
    'CSVDataModule',
    'Camelyon17DataModule',
    'FMoWRGBDataModule',
    'FMoWSentinelDataModule',
    'FMoWTemporalDataModule',
    'GlobalWheatDataModule',
    'IWildCamDataModule',
    'ImageFolderDataModule',
    'NAIPLandCoverDataModule',
    'PreparedDataModule',
    'RasterSceneDataModule',
    'ScenesDataModule',
    'SyntheticScenesDataModule',
]
