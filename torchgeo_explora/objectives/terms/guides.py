"""Guides: metadata that the class token should encode, or should not."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchgeo_explora.checks import require_positive, require_share
from torchgeo_explora.functional.ranks import mean_over_ranks
from torchgeo_explora.objectives.terms.gradients import scale_gradients

# An adversary's weight is divided by this, as in FINO.
_ADVERSARY = 10
# Steepness of the sigmoid by which the strength rises, as in DANN.
_STEEPNESS = 10


@dataclass(frozen=True)
class Guide:
    """Metadata that the class token should encode or, for an adversary, should not.

    Args:
        name: Key of the metadata in a batch, one number per image.
        kind: 'prototypical' compares the class token with a moving average for each
            value, and has no weights; 'classification' and 'regression' train a small
            MLP in addition to the objective's head.
        weight: Scale of the gradient that reaches the backbone.
        adversarial: Whether that gradient is reversed, and divided by 10: the backbone
            unlearns what the guide's head keeps trying to predict.
        values: Number of values, which are whole numbers from 0. A negative number
            means that the value is unknown. Not for regression.
        temperature: Temperature of the prototypical softmax.
        momentum: Momentum of the moving averages, per optimizer step. They start as
            plain means.
        hidden_dim: Width of the MLP's hidden layer.
        mean: Mean of a regression's targets, used to normalise them. A target that is
            NaN is unknown.
        std: Standard deviation of these targets.
    """

    name: str
    kind: Literal['prototypical', 'classification', 'regression'] = 'prototypical'
    weight: float = 0.03
    adversarial: bool = False
    values: int = 256
    temperature: float = 0.0233
    momentum: float = 0.999
    hidden_dim: int = 512
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Check kind and ranges."""
        if self.kind not in _HEADS:
            raise ValueError(
                f'*kind* of the guide {self.name!r} is {self.kind!r}: choose from'
                f' {", ".join(_HEADS)}'
            )
        if not self.name or '.' in self.name:
            raise ValueError(
                f'*name* of a guide is {self.name!r}: give a key of the batch, without'
                ' dots'
            )
        for name in ('weight', 'values', 'temperature', 'hidden_dim', 'std'):
            require_positive(name, getattr(self, name))
        require_share('momentum', self.momentum)

    @property
    def factor(self) -> float:
        """The factor on the gradient of the class token, at full strength."""
        return -self.weight / _ADVERSARY if self.adversarial else self.weight


class Guides(nn.Module):
    """The heads of guides on the student's class token, and their losses.

    FINO (https://arxiv.org/abs/2606.05107). Each head is trained on its own unscaled
    loss; the gradient that reaches the backbone is scaled. The gradients of all guides
    on the class tokens are first brought to the same norm, the mean of their norms, and
    then multiplied by weight, sign and a strength that rises from 0 to 1 over the run
    as in DANN (https://arxiv.org/abs/1505.07818). Norms, counts and moving averages
    cover all processes. Difference: a moving average starts as the plain mean of the
    images so far, so that it does not depend on the first one.

    Args:
        guides: One for each key.
        width: D, width of the class token.

    Raises:
        ValueError: If two guides have the same name.
    """

    def __init__(self, guides: Sequence[Guide], width: int) -> None:
        """Build the heads."""
        super().__init__()
        names = [guide.name for guide in guides]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f'*guides* has {", ".join(twice)} twice: give one guide for each key'
            )
        self.guides = tuple(guides)
        # With a prefix: a key such as `values` is a method of the dictionary.
        self.heads = nn.ModuleDict(
            {f'guide_{g.name}': _HEADS[g.kind](g, width) for g in guides}
        )

    def targets(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """Return the metadata of each guide, (B,).

        Raises:
            ValueError: If a batch lacks a key, or holds anything else under it.
        """
        images, found = len(batch['image']), []
        for guide in self.guides:
            if guide.name not in batch:
                keys = ', '.join(sorted(set(batch) - {'image'}))
                raise ValueError(
                    f'the guide {guide.name!r} finds no such key in a batch, which has'
                    f' {keys or "only the image"}: choose one of these, or a data set'
                    ' that has the key'
                )
            value = batch[guide.name]
            if not isinstance(value, Tensor) or value.shape != (images,):
                kind = (
                    f'a tensor {tuple(value.shape)}'
                    if isinstance(value, Tensor)
                    else f'a {type(value).__name__}'
                )
                raise ValueError(
                    f'the guide {guide.name!r} needs one number for each of {images}'
                    f' images, and the batch has {kind}: number its values from 0'
                )
            found.append(value)
        return found

    def forward(
        self, cls: Tensor, targets: Sequence[Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return the loss of each guide, by name: a mean over the known values.

        Args:
            cls: The student's class tokens of V crops, (V * B, D), crop by crop.
            targets: As `targets` returns them.
            progress: Optimizer steps done over planned, in [0, 1].
        """
        strength = 2 / (1 + math.exp(-_STEEPNESS * progress)) - 1
        factors = [strength * guide.factor for guide in self.guides]
        losses, known = [], []
        for head, copy, target in zip(
            self.heads.values(), scale_gradients(cls, factors), targets, strict=True
        ):
            repeated = target.to(cls.device).repeat(len(cls) // len(target))
            loss, valid = head(copy, repeated)
            losses.append(torch.where(valid, loss, 0).sum())
            known.append(valid.sum())
        # Divided by the mean count of all processes: the mean of their losses is then
        # the loss of one process with the whole batch.
        counts = mean_over_ranks(torch.stack(known).float()).clamp(min=1e-6)
        means = torch.stack(losses) / counts
        return dict(zip(self.heads, means, strict=True))

    def after_step(self) -> None:
        """Update the averages of prototypical guides with what was seen since."""
        for head in self.heads.values():
            if isinstance(head, PrototypicalHead):
                head.move()


class PrototypicalHead(nn.Module):
    """Cosine similarity to a moving average of the class tokens of each value.

    The loss is ProtoNCE (https://arxiv.org/abs/2005.04966) over the values seen so far;
    an image whose value has no average yet does not count.

    Args:
        guide: What to look for.
        width: D.
    """

    centroids: Tensor
    steps: Tensor

    def __init__(self, guide: Guide, width: int) -> None:
        """Start without averages."""
        super().__init__()
        self.guide = guide
        self.register_buffer('centroids', torch.zeros(guide.values, width))
        #: Optimizer steps that each average has seen.
        self.register_buffer('steps', torch.zeros(guide.values, dtype=torch.long))
        # Sums and counts since the last step. Not a buffer: it differs by process.
        self._seen: Tensor | None = None

    def forward(self, cls: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each row, and whether it counts: (R,) and (R,) bool.

        Args:
            cls: (R, D).
            target: (R,).

        Raises:
            ValueError: If a value is out of range, or not a whole number.
        """
        codes = _codes(self.guide, target)
        with torch.autocast(cls.device.type, enabled=False):
            unit = F.normalize(cls.float(), dim=-1)
            if self.training:
                self._note(unit.detach(), codes)
            known = self.steps > 0
            logits = unit @ F.normalize(self.centroids, dim=-1).T
            logits = (logits / self.guide.temperature).masked_fill(~known, -torch.inf)
            at = codes.clamp(min=0)
            valid = (codes >= 0) & known[at]
            # A row that does not count must not become infinite, nor its gradient.
            logits = torch.where(valid[:, None], logits, 0)
            return F.cross_entropy(logits, at, reduction='none'), valid

    def _note(self, unit: Tensor, codes: Tensor) -> None:
        # A product always adds in the same order; on GPUs, a scatter does not.
        member = codes[:, None] == torch.arange(self.guide.values, device=unit.device)
        share = member.float().T  # (values, R)
        sums = torch.cat([share @ unit, share.sum(1, keepdim=True)], dim=1)
        self._seen = sums if self._seen is None else self._seen + sums

    @torch.no_grad()
    def move(self) -> None:
        """Move the averages towards what was seen since the last step."""
        if self._seen is None:
            return
        seen = mean_over_ranks(self._seen)
        self._seen = None
        sums, counts = seen[:, :-1], seen[:, -1:]
        present = counts > 0
        rate = (1 / (self.steps + 1)).clamp(min=1 - self.guide.momentum)[:, None]
        means = sums / counts.where(present, 1)
        moved = self.centroids.lerp(means, rate)
        self.centroids.copy_(moved.where(present, self.centroids))
        self.steps += present.squeeze(1)


class ClassificationHead(nn.Module):
    """An MLP that predicts a value.

    Args:
        guide: What to look for.
        width: D.
    """

    def __init__(self, guide: Guide, width: int) -> None:
        """Build the MLP."""
        super().__init__()
        self.guide = guide
        self.mlp = _mlp(width, guide.hidden_dim, guide.values)

    def forward(self, cls: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of each row, and whether it counts.

        Args:
            cls: (R, D).
            target: (R,).

        Raises:
            ValueError: If a value is out of range, or not a whole number.
        """
        codes = _codes(self.guide, target)
        logits = self.mlp(cls).float()
        loss = F.cross_entropy(logits, codes.clamp(min=0), reduction='none')
        return loss, codes >= 0


class RegressionHead(nn.Module):
    """An MLP that predicts a number.

    Args:
        guide: What to look for, with the mean and standard deviation of the targets.
        width: D.
    """

    def __init__(self, guide: Guide, width: int) -> None:
        """Build the MLP."""
        super().__init__()
        self.guide = guide
        self.mlp = _mlp(width, guide.hidden_dim, 1)

    def forward(self, cls: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared error of each row, and whether it counts.

        Args:
            cls: (R, D).
            target: (R,).
        """
        valid = target.isfinite()
        wanted = (target.float() - self.guide.mean) / self.guide.std
        found = self.mlp(cls).float().squeeze(-1)
        return (found - torch.where(valid, wanted, 0)).square(), valid


_HEADS = {
    'prototypical': PrototypicalHead,
    'classification': ClassificationHead,
    'regression': RegressionHead,
}


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


def _codes(guide: Guide, target: Tensor) -> Tensor:
    """Return values as whole numbers, (R,) int64, negative where unknown."""
    values = torch.where(target.isfinite(), target, -1)
    codes = values.long()
    fraction = (values - codes).abs().max()
    largest, between = torch.stack([codes.max(), (fraction > 0).long()]).tolist()
    if between:
        raise ValueError(
            f'the guide {guide.name!r} found values that are not whole numbers, such as'
            f' {float(values[values != codes][0]):g}: give it the *kind* regression, or'
            ' number the values from 0'
        )
    if largest >= guide.values:
        raise ValueError(
            f'the guide {guide.name!r} found the value {largest}, expected whole'
            f' numbers from 0 to {guide.values - 1}: give it *values* {largest + 1} or'
            ' more, or number them from 0'
        )
    return codes
