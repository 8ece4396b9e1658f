"""The slow twin of every operation, written as section 4.2 of the paper reads: the oracle of the tests.

BA is formed, its row norms are computed directly, and autograd does the rest through a straight-through estimator. Its value
is B A x; A and B get the gradient of stopgrad(s) * (B A stopgrad(x)); x gets the gradient of B A x.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .family import GradientAdaptor


def row_norms(A: Tensor, B: Tensor) -> Tensor:
    """||(BA)_i||, with BA formed: A (..., r, n2), B (..., n1, r) -> (..., n1)."""
    return (B @ A).square().sum(dim=-1).sqrt()


def scale(magnitude: Tensor, eta: float) -> Tensor:
    """1 / sqrt(magnitude + 1/eta^2), as printed in section 4.2."""
    return 1 / torch.sqrt(magnitude + 1 / eta**2)


def straight_through(
    branch: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    gradient: GradientAdaptor,
    eta: float,
    norms: Callable[[], Tensor],
) -> Tensor:
    """The straight-through estimator, for any branch(x, A, B) and any layer type.

    `norms` gives ||(BA)_i|| in a shape that broadcasts against the branch's output.
    """
    value = branch(x, A.detach(), B.detach())
    trained = branch(x.detach(), A, B)
    if gradient == "row":
        trained = scale(norms().detach(), eta) * trained
    elif gradient == "entry":
        trained = scale(value.detach().abs(), eta) * trained
    return value + trained - trained.detach()


def linear(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, A: Tensor, B: Tensor, *,
    gradient: GradientAdaptor = "row", eta: float = 2.0, scaling: float = 1.0, fan_in_fan_out: bool = False,
) -> Tensor:  # fmt: skip
    """Twin of `linear.lora_linear`."""
    f = straight_through(
        lambda x, A, B: scaling * (x @ (B @ A).mT), x, A, B, gradient=gradient, eta=eta, norms=lambda: row_norms(A, B)
    )
    if weight is None:
        return f
    return x @ (weight if fan_in_fan_out else weight.mT) + (0 if bias is None else bias) + f


def embedding(
    tokens: Tensor, A: Tensor, B: Tensor, *, padding_idx: int | None = None,
    gradient: GradientAdaptor = "row", eta: float = 2.0, scaling: float = 1.0,
) -> Tensor:  # fmt: skip
    """Twin of `embedding.lora_embedding`."""
    return straight_through(
        lambda tokens, A, B: scaling * (F.embedding(tokens, A.mT, padding_idx) @ B.mT),
        tokens, A, B, gradient=gradient, eta=eta, norms=lambda: row_norms(A, B),
    )  # fmt: skip


def conv(
    x: Tensor, A: Tensor, B: Tensor, *, stride: tuple[int, ...], padding: tuple[int, ...], groups: int = 1,
    gradient: GradientAdaptor = "row", eta: float = 2.0, scaling: float = 1.0,
) -> Tensor:  # fmt: skip
    """Twin of `conv.lora_conv`; row norms from each group's own rows of A."""
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.dim()]

    def norms() -> Tensor:
        parts = zip(A.flatten(1).chunk(groups), B.flatten(1).chunk(groups), strict=True)
        channels = torch.cat([row_norms(a, b) for a, b in parts])
        return channels.view(-1, *(1,) * (x.dim() - 2))

    return straight_through(
        lambda x, A, B: scaling * convolve(convolve(x, A, None, stride, padding), B, groups=groups),
        x, A, B, gradient=gradient, eta=eta, norms=norms,
    )  # fmt: skip


def scaled_output(f: Tensor, eta: float) -> Tensor:
    """Twin of `scale.scaled_output`: f / sqrt(|f| + 1/eta^2)."""
    return f / torch.sqrt(f.abs() + 1 / eta**2)


def cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Twin of `cross_entropy.linear_cross_entropy`: -log softmax(X W^T + b) at the label, row by row."""
    return -F.linear(hidden, weight, bias).log_softmax(dim=-1)[torch.arange(len(labels)), labels]


def delta_weight(A: Tensor, B: Tensor, *, eta: float, scaling: float = 1.0) -> Tensor:
    """Twin of `delta_weight.lora_delta_weight`: the branch on the identity matrix, transposed."""
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return straight_through(
        lambda x, A, B: scaling * (x @ (B @ A).mT),
        identity, A, B, gradient="row", eta=eta, norms=lambda: row_norms(A, B).unsqueeze(-2),
    ).mT  # fmt: skip


def relative_step(W: Tensor, A: Tensor, B: Tensor, dA: Tensor, dB: Tensor, *, rate: float, eta: float) -> tuple[Tensor, Tensor]:
    """Twin of `relative.py`: the step (dA, dB) as it is applied to A (r, n2) and B (n1, r), beside W (n1, n2)."""

    def norms_of_rows(M: Tensor) -> Tensor:
        return M.square().sum(dim=1).sqrt()

    def rms(x: Tensor) -> Tensor:
        return x.square().mean().sqrt()

    c = rate * rms(norms_of_rows(W)) / rms(norms_of_rows(dB @ A + B @ dA))
    t = 1 / torch.sqrt(1 + eta**2 * row_norms(A, B) / norms_of_rows(W))
    of_A = rms(t[:, None] * B) / rms(B) if B.any() else t.max()
    return c * of_A * dA, c * t[:, None] * dB
