"""Data modules in TorchGeo's manner."""

from torchgeo_explora.datamodules.image_folder import ImageFolderDataModule

__all__ = ['ImageFolderDataModule']
