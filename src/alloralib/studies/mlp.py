"""The multi-layer perceptron of the paper's section 3, with LoRA on every layer and dropout on the bottleneck (eq. 1).

PEFT puts dropout in front of A, so these few lines are not to be had from it.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Mlp:
    """Layers W x + b with ReLU between them.

    Args:
        sizes: widths from input to output.
        generator: of the initial values (PyTorch's own: uniform within 1/sqrt(fan-in)).
    """

    def __init__(self, sizes: list[int], generator: torch.Generator) -> None:
        self.W, self.b = [], []
        for n2, n1 in itertools.pairwise(sizes):
            bound = 1 / math.sqrt(n2)
            self.W.append((torch.rand(n1, n2, generator=generator) * 2 - 1) * bound)
            self.b.append((torch.rand(n1, generator=generator) * 2 - 1) * bound)

    @property
    def parameters(self) -> list[Tensor]:
        """All weights and biases."""
        return [*self.W, *self.b]

    def __call__(self, x: Tensor, rate: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Logits; with a rate, dropout on the hidden activations."""
        for layer, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            x = F.linear(x, W, b)
            if layer < len(self.W) - 1:
                x = dropout(x.relu(), rate, generator)
        return x

    def fit(self, x: Tensor, y: Tensor, *, epochs: int, batch: int, lr: float, generator: torch.Generator) -> None:
        """Train all of it with Adam on the cross-entropy, and freeze it."""
        for p in self.parameters:
            p.requires_grad_()
        optimiser = torch.optim.Adam(self.parameters, lr=lr)
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=generator).split(batch):
                optimiser.zero_grad()
                F.cross_entropy(self(x[rows]), y[rows]).backward()
                optimiser.step()
        for p in self.parameters:
            p.requires_grad_(False)


class LoraMlp:
    """A frozen Mlp with B A on the chosen layers, B = 0 and A Kaiming-uniform as in PEFT.

    Args:
        base: the frozen net.
        r: rank.
        layers: those with an adapter.
    """

    def __init__(self, base: Mlp, r: int, generator: torch.Generator, layers: list[int] | None = None) -> None:
        self.base, self.layers = base, list(range(len(base.W))) if layers is None else layers
        self.A = {i: _uniform(r, base.W[i].shape[1], generator).requires_grad_() for i in self.layers}
        self.B = {i: torch.zeros(base.W[i].shape[0], r).requires_grad_() for i in self.layers}

    @property
    def parameters(self) -> list[Tensor]:
        """The factors."""
        return [*self.A.values(), *self.B.values()]

    def __call__(self, x: Tensor, rate: float = 0.0, generator: torch.Generator | None = None, realisations: int = 1) -> Tensor:
        """Logits; with a rate, dropout on every bottleneck.

        Args:
            x: (N, n2).
            realisations: how many masks per row; more than one gives (realisations, N, n1). What lies in front of the first
                mask is computed once.
        """
        last = len(self.base.W) - 1
        for i, (W, b) in enumerate(zip(self.base.W, self.base.b, strict=True)):
            y = F.linear(x, W, b)
            if i in self.A:
                H = F.linear(x, self.A[i])
                if realisations > 1 and H.dim() == 2:
                    H = H.expand(realisations, *H.shape)
                y = y + F.linear(dropout(H, rate, generator), self.B[i])
            x = y.relu() if i < last else y
        return x

    def norms(self) -> tuple[float, float]:
        """Frobenius norms of all A together and of all B together."""
        both = [math.sqrt(sum(float(p.detach().square().sum()) for p in m.values())) for m in (self.A, self.B)]
        return both[0], both[1]


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout with a generator of its own."""
    if rate == 0:
        return x
    return x * ((torch.rand(x.shape, generator=generator) >= rate) / (1 - rate))


def batches(rows: int, batch: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Row numbers of every step: epochs of fresh permutations, without the incomplete rest."""
    found: list[Tensor] = []
    while len(found) < steps:
        found += torch.randperm(rows, generator=generator)[: rows // batch * batch].split(batch)
    return found[:steps]


def _uniform(r: int, n2: int, generator: torch.Generator) -> Tensor:
    return (torch.rand(r, n2, generator=generator) * 2 - 1) / math.sqrt(n2)
