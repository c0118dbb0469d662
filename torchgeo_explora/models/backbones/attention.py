"""Self-attention with queries, keys and values as layers of their own."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as FusedAttention
from torch import Tensor, autocast, nn

from torchgeo_explora.functional.autocast import under_autocast


class Attention(nn.Module):
    """timm's self-attention with its fused `qkv` as three Linears, same output.

    Adapters can then be put on the query and value projections by name.

    Args:
        fused: timm's attention, whose weights are copied and whose norms are taken.
    """

    def __init__(self, fused: FusedAttention) -> None:
        """Copy the rows of *fused* that belong to each projection."""
        super().__init__()
        self.num_heads = fused.num_heads
        self.dropout = fused.attn_drop.p
        biases = None if fused.qkv.bias is None else fused.qkv.bias.chunk(3)
        self.q, self.k, self.v = split_linear(fused.qkv, biases)
        self.q_norm = fused.q_norm
        self.k_norm = fused.k_norm
        self.norm = fused.norm
        self.proj = fused.proj
        self.proj_drop = fused.proj_drop

    def place(
        self, queries: Tensor, keys: Tensor, rows: Tensor | None, **context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return queries and keys with what a block knows of their tokens: as they are.

        Args:
            queries: (B, heads, N, D / heads), or (B, heads, R, D / heads) of *rows*.
            keys: (B, heads, N, D / heads).
            rows: (B, R), the token that each query belongs to; all in order if None.
            **context: What `Backbone.enter` gives to every block.
        """
        return queries, keys

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        **context: Tensor,
    ) -> Tensor:
        """Return tokens (B, N, D) that have attended to one another.

        Args:
            x: Tokens, (B, N, D).
            attn_mask: As in `torch.nn.functional.scaled_dot_product_attention`: bool,
                True where a token may look, or float, added to the scores.
            is_causal: Whether a token sees only those before it.
            **context: As for `place`.
        """
        x = _cast_once(x)
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )  # (B, N, D) -> (B, heads, N, D / heads)
        dropout = self.dropout if self.training else 0.0
        q, k = self.place(self.q_norm(q), self.k_norm(k), None, **context)
        x = _attend(q, k, v, attn_mask, dropout, is_causal)
        x = x.transpose(1, 2).flatten(2)  # -> (B, N, D)
        return self.proj_drop(self.proj(self.norm(x)))

    def of_rows(
        self, x: Tensor, keep: Tensor, index: Tensor, **context: Tensor
    ) -> Tensor:
        """Return what `forward` does, for chosen tokens only.

        All tokens are keys and values; queries, and what follows, are made of the
        chosen ones.

        Args:
            x: Tokens, (B, N, D).
            keep: (B, N) bool, True for the R chosen tokens.
            index: (R,), where they stand in `x.flatten(0, 1)`, on its device.
            **context: As for `place`.

        Returns:
            (R, D), image by image.
        """
        x = _cast_once(x)
        images, _, width = x.shape
        count = keep.sum(1)
        longest = max(int(count.max()), 1)
        # Each image's queries stand at the start of a row of the longest's length.
        place = torch.arange(longest, device=keep.device) < count[:, None]
        slot = place.flatten().nonzero().squeeze(1).to(x.device)
        q = self.q(x.flatten(0, 1)[index])  # (R, D)
        q = q.new_zeros(images * longest, width).index_copy(0, slot, q)
        q, k, v = (
            part.view(images, -1, self.num_heads, width // self.num_heads)
            for part in (q, self.k(x), self.v(x))
        )
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        rows = None
        if context:
            # What fills a row up is token 0, whose query nobody reads.
            rows = index.new_zeros(images * longest)
            rows = rows.index_copy(0, slot, index % x.shape[1]).view(images, longest)
        q, k = self.place(self.q_norm(q), self.k_norm(k), rows, **context)
        found = _attend(q, k, v, None, dropout, False)
        found = found.transpose(1, 2).flatten(2).flatten(0, 1)[slot]  # (R, D)
        return self.proj_drop(self.proj(self.norm(found)))


def _cast_once(x: Tensor) -> Tensor:
    """Return what autocast would make of *x* for each projection, and keep of it."""
    if not under_autocast(x):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool
) -> Tensor:
    """Return what each query (B, heads, N, D / heads) reads from the values."""
    if q.device.type != 'cpu':
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
    # On a CPU torch's backward in bfloat16 takes 2 to 8 times as long as in float32.
    with autocast('cpu', enabled=False):
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
        x = F.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), mask, dropout, causal
        )
    return x.to(v.dtype)


def split_linear(
    fused: nn.Linear, biases: Sequence[Tensor | None] | None
) -> list[nn.Linear]:
    """Return the thirds of a Linear's rows as Linears of their own.

    Args:
        fused: Rows of the queries, then of the keys, then of the values.
        biases: One for each third, None where it has none; None for none at all.
    """
    layers = []
    for index, weight in enumerate(fused.weight.detach().chunk(3)):
        # On the meta device no numbers are drawn that would be thrown away: a seed
        # gives the same weights as timm's own constructor.
        rows, columns = weight.shape
        bias = None if biases is None else biases[index]
        layer = nn.Linear(columns, rows, bias is not None, device='meta')
        layer.weight = nn.Parameter(weight.clone())
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        layers.append(layer)
    return layers
