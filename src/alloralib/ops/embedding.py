"""The rule on an embedding: f(token) = c B A[:, token], rows of BA = output features.

    H      = A[:, tokens]^T                                         N x r
    dL/dB  = c diag(s) G^T H                                        s from the norms of BA over the whole vocabulary
    dL/dA  = columns of A: c G diag(s) B added up over the tokens that read them

There is no gradient for the input, whose entries are integers. The slow twin is `reference.embedding`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._function import apply, once
from .adaptors import GradientAdaptor
from .lowrank import lowrank_backward
from .precision import without_autocast


class _LoraEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        A: Tensor,
        B: Tensor,
        padding_idx: int | None,
        scaling: float,
        gradient: GradientAdaptor,
        eta: float,
    ) -> Tensor:
        ctx.padding_idx, ctx.scaling, ctx.gradient, ctx.eta = padding_idx, scaling, gradient, eta
        flat = tokens.reshape(-1)
        with without_autocast(A.device.type):
            hidden = F.embedding(flat, A.mT)
            y = hidden @ B.mT
            if scaling != 1:
                y = y * scaling
        ctx.save_for_backward(flat, A, B, hidden)
        return y.view(*tokens.shape, B.shape[0])

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        flat, A, B, hidden = ctx.saved_tensors
        grad_A = None
        with without_autocast(A.device.type):
            grad = grad_outputs[0].reshape(-1, B.shape[0]).to(A.dtype)
            low = lowrank_backward(
                grad, hidden, A, B, scaling=ctx.scaling, gradient=ctx.gradient, eta=ctx.eta, need_input=False
            )
            if ctx.needs_input_grad[1]:
                for_A = low.for_A
                if ctx.padding_idx is not None:  # as nn.Embedding: the padding token's column is not trained
                    for_A = for_A * (flat != ctx.padding_idx).unsqueeze(-1)
                columns = torch.zeros(A.shape[1], A.shape[0], dtype=A.dtype, device=A.device)
                grad_A = columns.index_add_(0, flat, for_A).mT.contiguous()
        grad_B = low.B if ctx.needs_input_grad[2] else None
        return None, grad_A, grad_B, None, None, None, None


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
        (..., d) in the dtype of A. Second derivatives raise.
    """
    return apply(_LoraEmbedding, tokens, A, B, padding_idx, scaling, gradient, eta)
