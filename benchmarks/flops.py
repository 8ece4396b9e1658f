"""Floating-point operations (FLOPs) of a training step, counted from the model's shapes.

A matrix product of (m, k) and (k, n) takes 2 m k n operations. For N tokens, a layer (n1, n2) and rank r:

    frozen    Y = X W^T, G W                                      2 N n1 n2 each
    adapter   H = X A^T, P B^T for A: G (s B), for X: G B,        2 N r times n2, n1, n1, n1, n1, n2, n2
              Y += H B^T, G^T H, (G s B)^T X, dX += (G B) A
    rule      A A^T, B (A A^T)                                    2 r^2 (n1 + n2), once per step for any N

ALLoRA has one narrow product more than LoRA: A is trained with G diag(s) B, while X receives G B. Where the input needs no
gradient (the first layer of a model with frozen embeddings), the two products for X fall away. The frozen model keeps them,
because it is defined as the backward pass to the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .arms import linear_names


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one step.

    Attributes:
        frozen: forward and backward pass of the frozen model: linear layers, attention, output layer.
        adapters: the products of the low-rank branches.
        rule: the products of the row norms.
    """

    frozen: int
    adapters: int
    rule: int

    @property
    def ratio(self) -> float:
        """Adapted step over frozen step, if every operation took the same time."""
        return 1 + (self.adapters + self.rule) / self.frozen

    def record(self) -> dict[str, float]:
        """The counts as a record holds them, under its key `floor`."""
        return {"frozen": self.frozen, "adapters": self.adapters, "rule": self.rule, "ratio": round(self.ratio, 5)}


def count(model: Any, rows: int, length: int, r: int, *, inputs_want: bool) -> Flops:
    """Count the operations of a step on rows x length tokens.

    Args:
        model: the model without adapters, a decoder or a BERT-like encoder of transformers.
        rows: rows in the batch.
        length: tokens in each row.
        r: rank of the adapters.
        inputs_want: whether the input of the first layers needs a gradient in the adapted model too.
    """
    tokens = rows * length
    frozen = adapters = rule = 0
    first = set() if inputs_want else _first(linear_names(model))
    for name in linear_names(model):
        layer: Any = model.get_submodule(name)
        n1, n2 = layer.out_features, layer.in_features
        n = rows if "pooler" in name else tokens  # BERT's pooler sees one token per row
        frozen += 2 * 2 * n * n1 * n2
        adapters += 2 * n * r * ((2 * n2 + 3 * n1) if name in first else (3 * n2 + 4 * n1))
        rule += 2 * r * r * (n1 + n2)
    config = model.config
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    frozen += config.num_hidden_layers * (2 + 4) * 2 * tokens * length * width  # QK^T and PV, and two products back from each
    for name, module in model.named_modules():
        if name and isinstance(module, nn.Linear) and name not in linear_names(model):  # the output layer or classifier
            n = tokens if name == "lm_head" else rows
            frozen += 2 * 2 * n * module.in_features * module.out_features
    return Flops(frozen, adapters, rule)


def _first(names: list[str]) -> set[str]:
    """Queries, keys and values of the first layer."""
    block = names[0].rpartition(".")[0]
    return {name for name in names if name.rpartition(".")[0] == block and not name.endswith("o_proj")}
