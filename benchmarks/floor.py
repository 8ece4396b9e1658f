"""The arithmetic's floor: what the adapters' products add to the frozen model's, counted and not measured.

A product of (m, k) and (k, n) is 2 m k n operations. For N tokens, a layer (n1, n2) and rank r:

    frozen    Y = X W^T, G W                                      2 N n1 n2 each
    adapter   H = X A^T, P B^T for A: G (s B), for X: G B,        2 N r times n2, n1, n1, n1, n1, n2, n2
              Y += H B^T, G^T H, (G s B)^T X, dX += (G B) A
    rule      A A^T, B (A A^T)                                    2 r^2 (n1 + n2), once per step whatever N is

ALLoRA needs one narrow product more than LoRA: A is trained by G diag(s) B, X gets G B. Where the input wants no gradient
(the first layer of a model whose embeddings are frozen) the two products for X fall away, in the frozen limit too, which is
kept there because it is defined as the backward pass to the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .arms import linear_names


@dataclass(frozen=True)
class Floor:
    """Floating-point operations of one step.

    Attributes:
        frozen: the limit's forward and backward pass: linear layers, attention, output layer.
        adapters: the products of the low-rank branches.
        rule: the products of the row norms.
    """

    frozen: int
    adapters: int
    rule: int

    @property
    def ratio(self) -> float:
        """Adapted step over frozen step, if all operations took the same time."""
        return 1 + (self.adapters + self.rule) / self.frozen

    def record(self) -> dict[str, float]:
        """As it stands in a record."""
        return {"frozen": self.frozen, "adapters": self.adapters, "rule": self.rule, "ratio": round(self.ratio, 5)}


def floor(model: Any, rows: int, length: int, r: int, *, inputs_want: bool) -> Floor:
    """Count the operations of a step on rows x length tokens.

    Args:
        model: not adapted; a decoder or a BERT-like encoder of transformers.
        inputs_want: whether the input of the first layers wants a gradient in the adapted model as well.
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
    frozen += config.num_hidden_layers * (2 + 4) * 2 * tokens * length * width  # QK^T and PV; two products back from each
    for name, module in model.named_modules():
        if name and isinstance(module, nn.Linear) and name not in linear_names(model):  # the head
            n = tokens if name == "lm_head" else rows
            frozen += 2 * 2 * n * module.in_features * module.out_features
    return Floor(frozen, adapters, rule)


def _first(names: list[str]) -> set[str]:
    """Queries, keys and values of the first layer."""
    block = names[0].rpartition(".")[0]
    return {name for name in names if name.rpartition(".")[0] == block and not name.endswith("o_proj")}
