"""What an adaptation did to a backbone, block by block."""

from torchgeo_explora.analysis.attention import truncated
from torchgeo_explora.analysis.blocks import BlockReport, analyze_blocks, block_outputs
from torchgeo_explora.analysis.changes import block_changes
from torchgeo_explora.analysis.linear_probe import linear_accuracy
from torchgeo_explora.analysis.similarity import linear_cka
from torchgeo_explora.analysis.spectra import principal_eigenvalues
from torchgeo_explora.analysis.suggestion import Suggestion, suggest

__all__ = [
    'BlockReport',
    'Suggestion',
    'analyze_blocks',
    'block_changes',
    'block_outputs',
    'linear_accuracy',
    'linear_cka',
    'principal_eigenvalues',
    'suggest',
    'truncated',
]
