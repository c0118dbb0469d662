"""Choose the weights to train, share the others with a teacher, store the delta."""

from torchgeo_explora.adapt.adaptation import Adaptation, adapt, lora, merged
from torchgeo_explora.adapt.anchor import frozen_base
from torchgeo_explora.adapt.average import average_deltas
from torchgeo_explora.adapt.collection import Deltas
from torchgeo_explora.adapt.delta import base_fingerprint, count, delta_state_dict
from torchgeo_explora.adapt.delta_file import (
    load_delta,
    read_delta,
    read_delta_metadata,
    save_delta,
)
from torchgeo_explora.adapt.exchange import exchange_adapter
from torchgeo_explora.adapt.storage import store_frozen
from torchgeo_explora.adapt.teacher import ema_update_, twin
from torchgeo_explora.models.formats.fingerprint import fingerprint

__all__ = [
    'Adaptation',
    'Deltas',
    'adapt',
    'average_deltas',
    'base_fingerprint',
    'count',
    'delta_state_dict',
    'ema_update_',
    'exchange_adapter',
    'fingerprint',
    'frozen_base',
    'load_delta',
    'lora',
    'merged',
    'read_delta',
    'read_delta_metadata',
    'save_delta',
    'store_frozen',
    'twin',
]
