"""ALLoRA on an embedding: f(token) = c B A[:, token]; rows of BA are output features.

    H   = A[:, tokens]^T                 N x r
    dB  = c diag(s) G^T H                s from the row norms of BA over the whole vocabulary
    dA  = P_A = c G diag(s) B (N x r), its rows added up in the columns of A that the tokens read

The input is integer and has no gradient. The slow twin is `reference.embedding`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._function import apply, once
from .family import GradientAdaptor
from .lowrank import lowrank_backward
from .precision import without_autocast


class _LoraEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, A: Tensor, B: Tensor,
        padding_idx: int | None, gradient: GradientAdaptor, eta: float, c: float,
    ) -> Tensor:  # fmt: skip
        ctx.padding_idx, ctx.gradient, ctx.eta, ctx.c = padding_idx, gradient, eta, c
        flat = tokens.reshape(-1)
        with without_autocast(A.device.type):
            H = F.embedding(flat, A.mT)
            f = (H if c == 1 else c * H) @ B.mT
        ctx.save_for_backward(flat, A, B, H)
        return f.view(*tokens.shape, B.shape[0])

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        flat, A, B, H = ctx.saved_tensors
        _, need_A, need_B = ctx.needs_input_grad[:3]
        dA = None
        with without_autocast(A.device.type):
            G = grad_outputs[0].reshape(-1, B.shape[0]).to(A.dtype)
            low = lowrank_backward(G, H, A, B, c=ctx.c, gradient=ctx.gradient, eta=ctx.eta, need_X=False)
            if need_A:
                rows = low.P_A
                if ctx.padding_idx is not None:  # as in nn.Embedding, the padding token's column is not trained
                    rows = rows * (flat != ctx.padding_idx).unsqueeze(-1)
                columns = torch.zeros(A.shape[1], A.shape[0], dtype=A.dtype, device=A.device)
                dA = columns.index_add_(0, flat, rows).mT.contiguous()
        return None, dA, low.dB if need_B else None, None, None, None, None


def lora_embedding(
    tokens: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    padding_idx: int | None = None,
    gradient: GradientAdaptor = "row",
    eta: float = 2.0,
    scaling: float = 1.0,
) -> Tensor:
    """Low-rank branch of an embedding, to be added to the frozen embedding's output.

    Args:
        tokens: (...), integer, each in [0, V).
        A: (r, V).
        B: (d, r), the dtype of A.
        padding_idx: a token whose column of A gets no gradient, or None.
        gradient: "row" is ALLoRA, "entry" ALLoRA-OD, "plain" LoRA.
        eta: the scale where a row of BA is zero, > 0.
        scaling: constant factor c on the branch.

    Returns:
        (..., d) in the dtype of A. Second derivatives raise a RuntimeError.
    """
    return apply(_LoraEmbedding, tokens, A, B, padding_idx, gradient, eta, scaling)
