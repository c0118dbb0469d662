"""Pure tensor functions: the mathematics of the objectives."""

from torchgeo_explora.functional.assignments import (
    centered_softmax,
    sinkhorn_knopp,
    sinkhorn_knopp_,
)
from torchgeo_explora.functional.losses import (
    dino_loss,
    ibot_loss,
    koleo,
    masked_mse,
    normalize_patches,
    patch_statistics,
)
from torchgeo_explora.functional.masks import block_masks, random_mask, visible_indices
from torchgeo_explora.functional.neighbors import knn_vote, nearest
from torchgeo_explora.functional.patches import (
    gather_tokens,
    patchify,
    replace_tokens,
    scatter_tokens,
    unpatchify,
)
from torchgeo_explora.functional.positions import resize_grid, sincos_1d, sincos_2d
from torchgeo_explora.functional.quality import (
    alignment,
    lidar,
    neighbour_agreement,
    place_retrieval,
    rankme,
    uniformity,
    variance_share,
)
from torchgeo_explora.functional.regularizers import gram_loss, sigreg
from torchgeo_explora.functional.schedules import cosine_schedule, linear_warmup

__all__ = [
    'alignment',
    'block_masks',
    'centered_softmax',
    'cosine_schedule',
    'dino_loss',
    'gather_tokens',
    'gram_loss',
    'ibot_loss',
    'knn_vote',
    'koleo',
    'lidar',
    'linear_warmup',
    'masked_mse',
    'nearest',
    'neighbour_agreement',
    'normalize_patches',
    'patch_statistics',
    'patchify',
    'place_retrieval',
    'random_mask',
    'rankme',
    'replace_tokens',
    'resize_grid',
    'scatter_tokens',
    'sigreg',
    'sincos_1d',
    'sincos_2d',
    'sinkhorn_knopp',
    'sinkhorn_knopp_',
    'uniformity',
    'unpatchify',
    'variance_share',
    'visible_indices',
]
