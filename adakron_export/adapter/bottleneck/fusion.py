"""AdapterFusion (Pfeiffer et al., EACL 2021): attention over what several bottlenecks add."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Fusion(nn.Module):
    """The fusion of one place, as AdapterHub computes it at inference.

    With ``u_n`` what adapter ``n`` adds and ``x`` the query, each token goes on with ``residual + sum_n p_n V u_n``,
    where ``p`` is the softmax over ``n`` of ``Q x . K u_n``.

    Args:
        hidden: Width of all.
        query: Whether the query is projected; ``key`` and ``value`` likewise.
        query_before_ln: Whether the query is what the projection puts out; else what the last adapter reads.
    """

    def __init__(self, hidden: int, *, query: bool, key: bool, value: bool, query_before_ln: bool) -> None:
        super().__init__()
        self.query_before_ln = query_before_ln
        self.query = nn.Linear(hidden, hidden) if query else None
        self.key = nn.Linear(hidden, hidden) if key else None
        self.value = nn.Linear(hidden, hidden, bias=False) if value else None

    def forward(self, query: Tensor, added: Sequence[Tensor], residual: Tensor) -> Tensor:
        """Fuse; all are ``[batch, tokens, hidden]``."""
        stacked = torch.stack(tuple(added), dim=2)  # [batch, tokens, adapters, hidden]
        query = query if self.query is None else self.query(query)
        key = stacked if self.key is None else self.key(stacked)
        value = stacked if self.value is None else self.value(stacked)
        shares = torch.softmax((key @ query.unsqueeze(-1)).squeeze(-1), dim=-1)
        return residual + (shares.unsqueeze(2) @ value).squeeze(2)
