"""Data sets in TorchGeo's manner."""

from torchgeo_explora.datasets.camelyon17 import Camelyon17
from torchgeo_explora.datasets.fmow_rgb import FMoWRGB
from torchgeo_explora.datasets.fmow_sentinel import FMoWSentinel
from torchgeo_explora.datasets.fmow_temporal import FMoWTemporal
from torchgeo_explora.datasets.folder_layout import NoImagesError
from torchgeo_explora.datasets.globalwheat import GlobalWheat
from torchgeo_explora.datasets.image_file import UnreadableImageError
from torchgeo_explora.datasets.image_folder import ImageFolder
from torchgeo_explora.datasets.iwildcam import IWildCam
from torchgeo_explora.datasets.naip import NAIPLandCover
from torchgeo_explora.datasets.prepared import Prepared
from torchgeo_explora.datasets.prepared_manifest import NotPreparedError, verify
from torchgeo_explora.datasets.prepared_shards import prepare
from torchgeo_explora.datasets.prepared_stream import PreparedStream
from torchgeo_explora.datasets.scene_windows import SceneWindows
from torchgeo_explora.datasets.scenes import Scenes
from torchgeo_explora.datasets.synthetic import SyntheticScenes
from torchgeo_explora.datasets.table_dataset import NoSamplesError
from torchgeo_explora.datasets.value_range import measure_range

__all__ = [
    'Camelyon17',
    'FMoWRGB',
    'FMoWSentinel',
    'FMoWTemporal',
    'GlobalWheat',
    'IWildCam',
    'ImageFolder',
    'NAIPLandCover',
    'NoImagesError',
    'NoSamplesError',
    'NotPreparedError',
    'Prepared',
    'PreparedStream',
    'SceneWindows',
    'Scenes',
    'SyntheticScenes',
    'UnreadableImageError',
    'measure_range',
    'prepare',
    'verify',
]
