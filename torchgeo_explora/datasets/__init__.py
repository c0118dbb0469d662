"""Data sets in TorchGeo's manner."""

from torchgeo_explora.datasets.fmow.rgb import FMoWRGB
from torchgeo_explora.datasets.fmow.sentinel import FMoWSentinel
from torchgeo_explora.datasets.fmow.temporal import FMoWTemporal
from torchgeo_explora.datasets.folder.image_folder import ImageFolder
from torchgeo_explora.datasets.folder.layout import NoImagesError
from torchgeo_explora.datasets.naip import NAIPLandCover
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.datasets.pixels.scaling import measure_range
from torchgeo_explora.datasets.prepared.dataset import Prepared
from torchgeo_explora.datasets.prepared.manifest import NotPreparedError, verify
from torchgeo_explora.datasets.prepared.stream import PreparedStream
from torchgeo_explora.datasets.prepared.writer import prepare
from torchgeo_explora.datasets.scenes.raster_dataset import Scenes
from torchgeo_explora.datasets.scenes.windows import SceneWindows
from torchgeo_explora.datasets.synthetic.scenes import SyntheticScenes
from torchgeo_explora.datasets.tables.csv_dataset import CSVColumns, CSVDataset
from torchgeo_explora.datasets.tables.dataset import NoSamplesError
from torchgeo_explora.datasets.wilds.recipes import Camelyon17, GlobalWheat, IWildCam

__all__ = [
    'CSVColumns',
    'CSVDataset',
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
