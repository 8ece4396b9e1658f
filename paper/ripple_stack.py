"""Stacks of ReLU layers with ALLoRA adapters: the trained networks of Proposition 1's study."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from alloralib.ops.linear import lora_linear
from alloralib.ops.ripple import low_rank_norm, ripple_bound

from .cells import Key, Result, Settings
from .data import StudyData
from .mlp import batches


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """Pretrain on digits, adapt to the same digits transposed, and measure growth and interaction."""
    g = torch.Generator().manual_seed(2000 + key["seed"])
    x, y = data.mnist("train")
    net = Stack(settings["width"], key["depth"], key["kind"] == "trained normed", g)
    n = settings["pretrain_rows"]
    net.fit(x[:n], y[:n], settings["pretrain_epochs"], settings["pretrain_lr"], g)
    rows = slice(n, n + settings["rows"])
    seen = x[rows].view(-1, 28, 28).mT.reshape(-1, 784)
    labels = y[rows]
    net.adapt(settings["rank"], settings["trained_eta"], g)
    lr = net.matched_rate(seen, labels, settings["first_step"])
    for chosen in batches(len(seen), settings["batch"], settings["steps"], g):
        net.step(F.cross_entropy(net.head(net.hidden(seen[chosen])), labels[chosen]), lr)
    test_x, test_y = data.mnist("test")
    test_x, test_y = test_x[:1000].view(-1, 28, 28).mT.reshape(-1, 784), test_y[:1000]
    with torch.no_grad():
        base, every = net.hidden(test_x, set()), net.hidden(test_x)
        apart = sum((net.hidden(test_x, {layer}) - base for layer in range(key["depth"])), torch.zeros_like(base))
        together = every - base
        growth = float((every.norm(dim=1) / base.norm(dim=1).clamp(min=1e-6)).log().mean())
        accuracy = [float((net.head(h).argmax(1) == test_y).float().mean()) for h in (base, every)]
        norms = [float(torch.linalg.matrix_norm(W, ord=2)) for W in net.W]
    deltas = [low_rank_norm(A, B) for A, B in zip(net.A, net.B, strict=True)]
    bound = ripple_bound(norms, deltas)
    return {
        "growth": growth, "bound": bound.log_product - bound.log_base, "mean_ratio": bound.mean_ratio, "rate": lr,
        "interaction": float((together - apart).norm() / apart.norm().clamp(min=1e-12)),
        "accuracy_before": accuracy[0], "accuracy_after": accuracy[1],
    }  # fmt: skip


class Stack:
    """A linear layer 784 -> width, `depth` ReLU layers (plain, or residual with a norm before each), and a linear head."""

    def __init__(self, width: int, depth: int, normed: bool, g: torch.Generator) -> None:
        self.normed = normed
        self.first = torch.randn(width, 784, generator=g) / 28
        gain = 1.0 if normed else math.sqrt(2)
        self.W = [gain * orthogonal(width, g).float() for _ in range(depth)]
        self.b = [torch.zeros(width) for _ in range(depth)]
        self.top = torch.randn(10, width, generator=g) / math.sqrt(width)
        self.A: list[Tensor] = []
        self.B: list[Tensor] = []
        self.eta = 1.0

    def hidden(self, x: Tensor, on: set[int] | None = None) -> Tensor:
        """The head's input, with the adapters of the layers `on` (None: all)."""
        x = F.linear(x, self.first)
        for layer, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            inner = normed(x) if self.normed else x
            if self.A and (on is None or layer in on):
                y = lora_linear(inner, W, b, self.A[layer], self.B[layer], gradient="row", eta=self.eta)
            else:
                y = F.linear(inner, W, b)
            x = x + y.relu() if self.normed else y.relu()
        return x

    def head(self, h: Tensor) -> Tensor:
        """Logits."""
        return F.linear(normed(h) if self.normed else h, self.top)

    def fit(self, x: Tensor, y: Tensor, epochs: int, lr: float, g: torch.Generator) -> None:
        """Train all parameters with Adam, then freeze them."""
        parameters = [self.first, *self.W, *self.b, self.top]
        for p in parameters:
            p.requires_grad_()
        optimizer = torch.optim.Adam(parameters, lr=lr)
        for rows in batches(len(x), 64, epochs * (len(x) // 64), g):
            optimizer.zero_grad()
            F.cross_entropy(self.head(self.hidden(x[rows])), y[rows]).backward()
            optimizer.step()
        for p in parameters:
            p.requires_grad_(False)

    def adapt(self, r: int, eta: float, g: torch.Generator) -> None:
        """Add an ALLoRA adapter to every hidden layer: A Kaiming-uniform, B = 0."""
        width = self.W[0].shape[0]
        self.A = [((torch.rand(r, width, generator=g) * 2 - 1) / math.sqrt(width)).requires_grad_() for _ in self.W]
        self.B = [torch.zeros(width, r).requires_grad_() for _ in self.W]
        self.eta = eta

    def step(self, loss: Tensor, lr: float) -> None:
        """One step of plain gradient descent."""
        factors = [*self.A, *self.B]
        with torch.no_grad():
            for p, grad in zip(factors, torch.autograd.grad(loss, factors), strict=True):
                p -= lr * grad

    def matched_rate(self, x: Tensor, y: Tensor, wanted: float) -> float:
        """The learning rate whose first step changes the head's input by the share `wanted`, to first order."""
        with torch.no_grad():
            before = self.hidden(x)
        saved = [p.detach().clone() for p in (*self.A, *self.B)]
        small = 1e-3
        self.step(F.cross_entropy(self.head(self.hidden(x)), y), small)
        with torch.no_grad():
            moved = float((self.hidden(x) - before).norm() / before.norm())
            for p, value in zip((*self.A, *self.B), saved, strict=True):
                p.copy_(value)
        return small * wanted / max(moved, 1e-12)


def normed(x: Tensor) -> Tensor:
    """Root-mean-square normalization without a gain."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def orthogonal(d: int, g: torch.Generator) -> Tensor:
    """A random orthogonal matrix (d, d), float64."""
    q: Callable[..., tuple[Tensor, Tensor]] = torch.linalg.qr  # pyright: ignore[reportAssignmentType]
    Q, R = q(torch.randn(d, d, generator=g, dtype=torch.float64))
    return Q * R.diagonal().sign()
