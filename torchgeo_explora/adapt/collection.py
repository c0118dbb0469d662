"""Several deltas of one base, held together."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from torchgeo_explora.adapt.adaptation import Adaptation, adapt, merged
from torchgeo_explora.adapt.delta import adapted
from torchgeo_explora.adapt.delta_file import load_delta, read_delta_metadata, view
from torchgeo_explora.models.backbones.record import record_of


class Deltas[M: nn.Module](Mapping[str, M]):
    """Backbones by name that share one base, each with its own delta.

    Every frozen tensor is shared: another delta takes only as much memory as its own
    tensors, about 71 MiB for a ViT-L instead of 1.13 GiB. To switch, take another one:

        deltas = Deltas(base)
        deltas.add('fmow', 'fmow.safetensors')
        deltas.add('harvey', 'harvey.safetensors')
        features = deltas['harvey'](image)

    Args:
        base: The plain base, which stays unchanged.

    Raises:
        ValueError: If *base* is adapted.
    """

    def __init__(self, base: M) -> None:
        """Start without deltas."""
        if adapted(base) is not None:
            raise ValueError(
                'deltas need a plain base, this backbone is adapted: build it again'
                " with the base's weights"
            )
        self.base = base
        self.metadata: dict[str, dict[str, Any]] = {}
        """The metadata of each file, by name, as `read_delta_metadata` returns them."""
        self._backbones: dict[str, M] = {}

    def add(self, name: str, path: str | os.PathLike[str]) -> M:
        """Load a delta of the base and return the backbone with this delta.

        Args:
            name: Its name here; a delta with the same name is replaced.
            path: A file written by `save_delta`.

        Raises:
            ValueError: If the file is damaged or was made for another base.
        """
        metadata = read_delta_metadata(path)
        backbone = adapt(view(self.base), Adaptation.from_dict(metadata['adaptation']))
        for parameter in backbone.parameters():
            if parameter.requires_grad:  # still shared with the base
                parameter.data = parameter.data.clone()
        load_delta(backbone, path)
        backbone.train(self.base.training)
        self._backbones[name], self.metadata[name] = backbone, metadata
        return backbone

    def remove(self, name: str) -> None:
        """Drop a delta."""
        del self._backbones[name], self.metadata[name]

    def interpolate(self, first: str, second: str, share: float) -> M:
        """Return a plain backbone: (1 - share) of the first, share of the second.

        Args:
            first: Name of the delta at share 0.
            second: Name of the delta at share 1.
            share: Share of the second, usually in [0, 1].
        """
        return self.average({first: 1 - share, second: share})

    @torch.no_grad()
    def average(self, weights: Mapping[str, float] | None = None) -> M:
        """Return a plain backbone whose weights are the mean over several deltas.

        The mean is taken over whole weights, with adapters folded in: the mean of two
        LoRA products, not the product of two means. The deltas may be of any kind.

        Args:
            weights: Share of each delta by name, which sum to 1; equal shares of all
                if None.

        Raises:
            KeyError: If there is no delta with a given name.
            ValueError: If the shares do not sum to 1.
        """
        if weights is None:
            weights = dict.fromkeys(self, 1 / max(len(self), 1))
        check_shares(weights.values())
        (first, share), *others = weights.items()
        total = merged(self[first])
        state = total.state_dict()
        for tensor in state.values():
            tensor.mul_(share)
        for name, share in others:
            other = merged(self[name]).state_dict()
            for key, tensor in state.items():
                tensor.add_(other[key], alpha=share)
        # The mean is not a delta folded into its base.
        record_of(total).lineage = None  # type: ignore[union-attr]
        return total

    def __getitem__(self, name: str) -> M:
        """Return the backbone with the delta *name*."""
        return self._backbones[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._backbones)

    def __len__(self) -> int:
        """Return how many deltas there are."""
        return len(self._backbones)


def check_shares(shares: Any) -> None:
    """Raise ValueError unless shares of a mean sum to 1."""
    shares = [*shares]
    # Written so that NaN is refused too.
    if not shares or not abs(sum(shares) - 1) <= 1e-6:
        raise ValueError(
            f'the shares of a mean must sum to 1, {shares} sum to {sum(shares):g}'
        )
