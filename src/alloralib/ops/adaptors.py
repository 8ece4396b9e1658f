"""Definition 2 of the paper: the family as pairs of an output adaptor and a gradient adaptor.

For f(x) = B A x the forward pass computes f~ = f_o(f) and the backward pass hands f_g(G) to A and B. Every member
of section 4.3 is one row of `FAMILY`; the adaptor function itself is `alloralib.ops.scale.scale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GradientAdaptor = Literal["plain", "row", "entry"]
"""What reaches A and B of the output gradient G (rows = tokens, columns = output features i).

    natural   G                                       LoRA
    row       G_ti / sqrt(||(BA)_i|| + 1/eta^2)       ALLoRA
    entry     G_ti / sqrt(|f(x)_ti| + 1/eta^2)        ALLoRA-OD
"""

OutputAdaptor = Literal["identity", "eta", "scaled"]
"""What the forward pass adds to the frozen layer's output.

    identity  f
    eta       eta f                                   LoRA x eta
    scaled    f_ti / sqrt(|f_ti| + 1/eta^2)           ASF-LoRA
"""


@dataclass(frozen=True)
class Member:
    """One member of the family: its two adaptors, the paper's dropout rate, and whether a weight can stand for it."""

    output: OutputAdaptor
    gradient: GradientAdaptor
    dropout: float
    mergeable: bool
    paper: str


FAMILY: dict[str, Member] = {
    "lora": Member("identity", "plain", 0.05, True, "Definition 1; Tables 1, 5, 6"),
    "lora-x-eta": Member("eta", "plain", 0.05, True, "section 4.3; Tables 4, 7"),
    "allora": Member("identity", "row", 0.0, True, "section 4.2; all tables"),
    "allora-d": Member("identity", "row", 0.05, True, "ALLoRA+D; Tables 2, 3, 6"),
    "allora-od": Member("identity", "entry", 0.0, True, "section 4.3; Tables 4, 7"),
    "asf-lora": Member("scaled", "plain", 0.0, False, "section 4.3; Tables 4, 7"),
}
