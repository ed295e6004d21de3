"""Attention over packed sequences where no varlen kernel is installed.

transformers would build an [S, S] block mask and attend across all packed tokens. Here each
sequence is laid into a row of its own for the attention alone, so the cost is that of the
sequences; causal attention never looks at the padding to the right of them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

PACKED = "grpo_packed"


def row_index(cu_seqlens: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Where each packed token goes when every sequence gets a row: (index_S, rows, columns)."""
    lengths = cu_seqlens.diff().long()
    rows, columns = len(lengths), int(lengths.max())
    starts_S = torch.repeat_interleave(cu_seqlens[:-1].long(), lengths)
    row_S = torch.repeat_interleave(torch.arange(rows, device=lengths.device), lengths)
    column_S = torch.arange(len(row_S), device=lengths.device) - starts_S
    return row_S * columns + column_S, rows, columns


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, S, D], key and value [1, kv_heads, S, D] -> [1, S, heads, D]."""
    index_S, rows, columns = kwargs["packed_rows"]

    def unpack(x: torch.Tensor) -> torch.Tensor:
        x_SHD = x[0].transpose(0, 1)
        padded = x.new_zeros(rows * columns, *x_SHD.shape[1:]).index_copy(0, index_S, x_SHD)
        return padded.view(rows, columns, *x_SHD.shape[1:]).transpose(1, 2)

    out = F.scaled_dot_product_attention(
        unpack(query),
        unpack(key),
        unpack(value),
        is_causal=True,
        scale=kwargs["scaling"],
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).reshape(rows * columns, *out.shape[1:2], -1)[index_S][None], None


def register() -> None:
    """Makes `attn_implementation="grpo_packed"` known to transformers."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, lambda *args, **kwargs: None)
