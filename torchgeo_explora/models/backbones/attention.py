"""Self-attention with separate layers for queries, keys and values."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as FusedAttention
from torch import Tensor, autocast, nn

from torchgeo_explora.functional.autocast import under_autocast


class Attention(nn.Module):
    """timm's self-attention with its fused `qkv` as three Linears; same output.

    Adapters can then be put on the query and value projections by name.

    Args:
        fused: timm's attention, whose weights are copied and whose norms are reused.
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
        """Return queries and keys with their positions applied: here, unchanged.

        Args:
            queries: (B, heads, N, D / heads), or (B, heads, R, D / heads) of *rows*.
            keys: (B, heads, N, D / heads).
            rows: (B, R), the token that each query belongs to; all in order if None.
            **context: What `Backbone.enter` returns for every block.
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
        """Return what `forward` returns, for chosen tokens only.

        Keys and values are computed for all tokens, queries and everything after them
        only for the chosen ones.

        Args:
            x: Tokens, (B, N, D).
            keep: (B, N) bool, True for the R chosen tokens.
            index: (R,), their indices in `x.flatten(0, 1)`, on its device.
            **context: As for `place`.

        Returns:
            (R, D), image by image.
        """
        x = _cast_once(x)
        images, _, width = x.shape
        count = keep.sum(1)
        longest = max(int(count.max()), 1)
        # Each image's queries are put at the start of a row as long as the longest.
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
            # Rows are filled up with token 0; these queries are not used.
            rows = index.new_zeros(images * longest)
            rows = rows.index_copy(0, slot, index % x.shape[1]).view(images, longest)
        q, k = self.place(self.q_norm(q), self.k_norm(k), rows, **context)
        found = _attend(q, k, v, None, dropout, False)
        found = found.transpose(1, 2).flatten(2).flatten(0, 1)[slot]  # (R, D)
        return self.proj_drop(self.proj(self.norm(found)))


def _cast_once(x: Tensor) -> Tensor:
    """Cast *x* as autocast would, which would cast and store it for each projection."""
    if not under_autocast(x):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool
) -> Tensor:
    """Return the attended values for each query, (B, heads, N, D / heads)."""
    if q.device.type != 'cpu':
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
    # On a CPU, torch's backward in bfloat16 takes 2 to 8 times as long as in float32.
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
    """Return the thirds of a Linear's rows as separate Linears.

    Args:
        fused: Rows of the queries, then of the keys, then of the values.
        biases: One for each third, None where it has none; None if there are none.
    """
    layers = []
    for index, weight in enumerate(fused.weight.detach().chunk(3)):
        # On the meta device, no unused random numbers are drawn, so that a seed gives
        # the same weights as timm's own constructor.
        rows, columns = weight.shape
        bias = None if biases is None else biases[index]
        layer = nn.Linear(columns, rows, bias is not None, device='meta')
        layer.weight = nn.Parameter(weight.clone())
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        layers.append(layer)
    return layers
