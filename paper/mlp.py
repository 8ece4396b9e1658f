"""The multi-layer perceptron of the paper's section 3, with LoRA on every layer and dropout on the bottleneck (eq. 1).

PEFT applies dropout to the input of A instead, so its layers cannot be used here.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .cells import Settings
from .data import StudyData


class Mlp:
    """Layers W x + b with ReLU between them.

    Args:
        sizes: widths from input to output.
        generator: draws the initial values, PyTorch's default: uniform within 1/sqrt(fan-in).
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
        """Logits (N, classes), with dropout on the hidden activations if a rate is given."""
        for layer, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            x = F.linear(x, W, b)
            if layer < len(self.W) - 1:
                x = dropout(x.relu(), rate, generator)
        return x

    def fit(self, x: Tensor, y: Tensor, *, epochs: int, batch: int, lr: float, generator: torch.Generator) -> None:
        """Train all parameters with Adam on the cross-entropy, then freeze them."""
        for p in self.parameters:
            p.requires_grad_()
        optimizer = torch.optim.Adam(self.parameters, lr=lr)
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=generator).split(batch):
                optimizer.zero_grad()
                F.cross_entropy(self(x[rows]), y[rows]).backward()
                optimizer.step()
        for p in self.parameters:
            p.requires_grad_(False)


class LoraMlp:
    """A frozen Mlp with LoRA on some layers; at the start B = 0 and A is Kaiming-uniform, as in PEFT.

    Args:
        base: the frozen network.
        r: the rank.
        generator: draws A.
        layers: the indices of the adapted layers; None means all.
    """

    def __init__(self, base: Mlp, r: int, generator: torch.Generator, layers: list[int] | None = None) -> None:
        self.base, self.layers = base, list(range(len(base.W))) if layers is None else layers
        self.A = {i: _uniform(r, base.W[i].shape[1], generator).requires_grad_() for i in self.layers}
        self.B = {i: torch.zeros(base.W[i].shape[0], r).requires_grad_() for i in self.layers}

    @property
    def parameters(self) -> list[Tensor]:
        """All A, then all B."""
        return [*self.A.values(), *self.B.values()]

    def __call__(self, x: Tensor, rate: float = 0.0, generator: torch.Generator | None = None, masks: int = 1) -> Tensor:
        """Logits, with dropout on every bottleneck if a rate is given.

        Args:
            x: (N, n2).
            rate: the dropout rate.
            generator: draws the masks.
            masks: the number of masks per row. What comes before the first mask is computed once.

        Returns:
            (N, n1), or (masks, N, n1) for more than one mask.
        """
        last = len(self.base.W) - 1
        for i, (W, b) in enumerate(zip(self.base.W, self.base.b, strict=True)):
            y = F.linear(x, W, b)
            if i in self.A:
                H = F.linear(x, self.A[i])
                if masks > 1 and H.dim() == 2:
                    H = H.expand(masks, *H.shape)
                y = y + F.linear(dropout(H, rate, generator), self.B[i])
            x = y.relu() if i < last else y
        return x

    def norms(self) -> tuple[float, float]:
        """The Frobenius norms of all A together and of all B together."""
        both = [math.sqrt(sum(float(p.detach().square().sum()) for p in m.values())) for m in (self.A, self.B)]
        return both[0], both[1]


def pretrained(data: StudyData, seed: int, settings: Settings) -> Mlp:
    """A frozen Mlp of `sizes`, trained with Adam on the first `pretrain_rows` images of MNIST; computed once per process."""
    epochs, lr = settings["pretrain_epochs"], settings["pretrain_lr"]
    return _pretrained(data, seed, tuple(settings["sizes"]), settings["pretrain_rows"], epochs, lr)


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout with its own generator, which `torch.nn.functional.dropout` does not take."""
    if rate == 0:
        return x
    return x * ((torch.rand(x.shape, generator=generator) >= rate) / (1 - rate))


def batches(rows: int, batch: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """The row numbers of every step: a new permutation per epoch, whose incomplete last batch is dropped."""
    found: list[Tensor] = []
    while len(found) < steps:
        found += torch.randperm(rows, generator=generator)[: rows // batch * batch].split(batch)
    return found[:steps]


@lru_cache(maxsize=8)
def _pretrained(data: StudyData, seed: int, sizes: tuple[int, ...], rows: int, epochs: int, lr: float) -> Mlp:
    g = torch.Generator().manual_seed(seed)
    x, y = data.mnist("train")
    base = Mlp(list(sizes), g)
    base.fit(x[:rows], y[:rows], epochs=epochs, batch=64, lr=lr, generator=g)
    return base


def _uniform(r: int, n2: int, generator: torch.Generator) -> Tensor:
    return (torch.rand(r, n2, generator=generator) * 2 - 1) / math.sqrt(n2)
