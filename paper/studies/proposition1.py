"""Proposition 1, the ripple effect: the bound, the construction that attains it, random networks, and trained adapters.

The bound allows a growth of C (1 + eta m)^L. The question is how much of its exponent a network uses, and how much of a trained
adapter's effect comes from its layers acting together. The proposition is about products of linear layers; for residual stacks
and trained networks the bound of the plain product serves as a yardstick. The trained networks are in `ripple_stack` and
`ripple_transformer`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alloralib.ops.ripple import low_rank_norm, ripple_bound

from .. import ripple_stack, ripple_transformer
from ..cells import Cell, Key, Result, Settings, results, values
from ..data import StudyData
from ..drawing import average, axes_grid, save
from ..ripple_stack import normed, orthogonal
from ..study import Claim, Finding, Study, both_scales, by_mean, keys, minus, range_finding

COMMON: Settings = {
    "m": 0.1, "eta": 4.0, "width": 64, "rank": 8, "depths": [1, 2, 4, 8, 16, 32, 64],
    "trained_depths": [1, 2, 4, 8, 16], "trained_eta": 2.0, "pretrain_rows": 4096, "pretrain_epochs": 5, "pretrain_lr": 1e-3,
    "rows": 512, "batch": 64, "first_step": 0.02,
}  # fmt: skip
RANDOM = ("orthogonal", "skip", "pre-norm")
"""W orthogonal; x + eta BA norm(x); x + (W + eta BA) norm(x) with W orthogonal. BA is random with norm m.
Beside them stands "aligned", with W = I and BA = m u u^T, which attains the bound."""
TRANSFORMERS = [f"transformer {kind}" for kind in ripple_transformer.KINDS]


def plan(settings: Settings) -> list[Key]:
    """Constructions by depth and seed (nothing in the aligned one is random), then trained networks, then transformers."""
    seeds = range(settings["seeds"])
    return [
        *keys(kind=["aligned"], depth=settings["depths"], seed=[0]),
        *keys(kind=RANDOM, depth=settings["depths"], seed=seeds),
        *keys(kind=["trained plain", "trained normed"], depth=settings["trained_depths"], seed=seeds),
        *keys(kind=TRANSFORMERS, depth=settings["transformer"]["depths"], seed=seeds),
    ]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """Logarithms of the growth caused by the adapters and of its bound; for trained networks the interaction too."""
    if key["kind"].startswith("trained"):
        return ripple_stack.work(key, settings, data)
    if key["kind"].startswith("transformer"):
        return ripple_transformer.work(key, settings, data)
    return _construction(key, settings)


def _construction(key: Key, settings: Settings) -> Result:
    g = torch.Generator().manual_seed(1000 * key["seed"] + key["depth"])
    d, eta, m = settings["width"], settings["eta"], settings["m"]
    layers = []
    for _ in range(key["depth"]):
        if key["kind"] == "aligned":
            u = torch.full((d, 1), 1 / math.sqrt(d), dtype=torch.float64)
            layers.append((torch.eye(d, dtype=torch.float64), u.mT, m * u))
            continue
        W = orthogonal(d, g)
        A, B = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((settings["rank"], d), (d, settings["rank"])))
        layers.append((W, A, B * (m / low_rank_norm(A, B))))
    x = torch.full((d,), 1 / math.sqrt(d), dtype=torch.float64)
    if key["kind"] != "aligned":
        x = normed(torch.randn(d, generator=g, dtype=torch.float64))
    adapted = base = x
    for W, A, B in layers:
        if key["kind"] == "skip":
            adapted = adapted + eta * (B @ (A @ normed(adapted)))
        elif key["kind"] == "pre-norm":
            adapted = adapted + _delta(W, A, B, eta, normed(adapted))
            base = base + W @ normed(base)
        else:
            adapted, base = _delta(W, A, B, eta, adapted), W @ base
    bound = ripple_bound([1.0] * len(layers), [low_rank_norm(A, B) for _, A, B in layers], eta)
    return {"growth": math.log(float(adapted.norm() / base.norm())), "bound": bound.log_product - bound.log_base}


def _delta(W: Tensor, A: Tensor, B: Tensor, eta: float, x: Tensor) -> Tensor:
    return W @ x + eta * (B @ (A @ x))


def excess(cells: Sequence[Cell], settings: Settings) -> Finding:
    """The largest log growth - log bound over the networks that the proposition is about, products of linear layers."""
    products = [c.result for c in cells if c.key["kind"] in ("aligned", "orthogonal")]
    return range_finding(
        [max(r["growth"] - r["bound"] for r in products)], below=1e-4, over=f"largest over {len(products)} networks"
    )


def attained(cells: Sequence[Cell], settings: Settings) -> Finding:
    """The growth of the aligned construction over (1 + eta m)^L, at the largest depth."""
    depth = max(settings["depths"])
    growth = math.exp(values(cells, "growth", kind="aligned", depth=depth)[0])
    theory = (1 + settings["eta"] * settings["m"]) ** depth
    return range_finding([growth / theory], above=0.999, below=1.001, over=f"exact, L = {depth}")


def growths(cells: Sequence[Cell], settings: Settings, kind: str) -> list[float]:
    """The growth at the largest depth, per seed."""
    return [math.exp(growth) for growth in values(cells, "growth", kind=kind, depth=_deepest(settings, kind))]


def shares(cells: Sequence[Cell], settings: Settings, kind: str) -> list[float]:
    """How much of the bound's exponent is used at the largest depth, in percent, per seed."""
    return [100 * r["growth"] / r["bound"] for r in results(cells, kind=kind, depth=_deepest(settings, kind))]


def interaction_growth(cells: Sequence[Cell], settings: Settings, kind: str, depth: int) -> list[float]:
    """The interaction at the largest depth minus that at `depth`, in points, per seed."""
    last, first = (values(cells, "interaction", kind=kind, depth=d) for d in (_deepest(settings, kind), depth))
    return [100 * v for v in minus(last, first)]


def per_change(cells: Sequence[Cell], settings: Settings, kind: str) -> list[float]:
    """Interaction per size of the effect, all blocks against 2, per seed: to first order the two are proportional."""
    last, first = (
        [r["interaction"] / r["change"] for r in results(cells, kind=kind, depth=d)] for d in (_deepest(settings, kind), 2)
    )
    return [a / b for a, b in zip(last, first, strict=True)]


def held_minus_normed(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """The interaction with the norms held minus that with the norms as they are, in points, per seed."""
    depth = max(settings["transformer"]["depths"])
    normed, held = (values(cells, "interaction", kind=kind, depth=depth) for kind in TRANSFORMERS)
    return [100 * v for v in minus(held, normed)]


def _deepest(settings: Settings, kind: str) -> int:
    if kind.startswith("transformer"):
        return max(settings["transformer"]["depths"])
    return max(settings["trained_depths" if kind.startswith("trained") else "depths"])


def ours(name: str, text: str, paper: str, judge: Any, where: str = "size of the effect") -> Claim:
    """A claim that the paper does not make."""
    return Claim(name, where, text, paper, judge, by_paper=False)


def share_claim(name: str, kind: str, label: str) -> Claim:
    """That a kind of network uses at least half of the bound's exponent."""
    judge = by_mean(lambda cells, s: shares(cells, s, kind), unit=" %", above=50)
    text = f"The effects multiply as the bound allows, in {label} (share of the bound's exponent)."
    return ours(f"{name}-share", text, "at most 100 %", judge)


def trained_claims(name: str, kind: str, label: str, deepest: str) -> list[Claim]:
    """Share and interaction of trained adapters."""
    return [
        share_claim(name, kind, f"trained adapters {label}"),
        *(
            ours(
                f"{name}-interaction-{depth}",
                f"The deeper the network, the more of a trained adapter's effect comes from layers acting together, {label} "
                f"(interaction with {deepest} layers minus interaction with {depth}).",
                "not measured",
                by_mean(lambda cells, s, depth=depth: interaction_growth(cells, s, kind, depth), unit=" points", above=0),
            )
            for depth in (2, 4)
        ),
    ]


def transformer_claims(kind: str, label: str) -> list[Claim]:
    """Those, and the interaction per size of the effect."""
    return [
        *trained_claims(f"transformer-{kind}", f"transformer {kind}", label, "all"),
        ours(
            f"transformer-{kind}-per-change",
            f"This also holds per size of the effect, {label} (interaction over relative change, all layers over 2 layers).",
            "not measured",
            by_mean(lambda cells, s: per_change(cells, s, f"transformer {kind}"), above=1),
        ),
    ]


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """Above: growth of the constructions by depth; growth and interaction of trained networks. Below: of transformers."""
    depths, trained, blocks = settings["depths"], settings["trained_depths"], settings["transformer"]["depths"]
    figure, axes = axes_grid(2, 3, size=(3.6, 2.9))
    left = axes[0][0]
    for number, kind in enumerate(("aligned", *RANDOM)):
        means = [average(values(cells, "growth", kind=kind, depth=depth)) for depth in depths]
        left.plot(depths, means, "o-", ms=3, color=f"C{number}", label=kind)
    left.plot(depths, [values(cells, "bound", kind="aligned", depth=d)[0] for d in depths], "k--", lw=1, label="bound")
    left.set_title("constructions: log growth", fontsize=9)
    _draw_trained(cells, axes[0][1:], "trained", {"plain": "plain", "normed": "normed"}, trained)
    names = {"normed": "norms as they are", "held": "norms held"}
    _draw_trained(cells, axes[1][1:], "transformer", names, blocks)
    left = axes[1][0]
    for number, (kind, label) in enumerate(names.items()):
        after = [100 * average(values(cells, "accuracy_after", kind=f"transformer {kind}", depth=d)) for d in blocks]
        left.plot(blocks, after, "o-", ms=3, color=f"C{number}", label=label)
    before = [100 * average(values(cells, "accuracy_before", kind="transformer normed", depth=d)) for d in blocks]
    left.plot(blocks, before, "k--", lw=1, label="without adapters")
    left.set_title("transformer: accuracy, %", fontsize=9)
    left.set_ylim(0, 100)
    for row, ticks, word in ((axes[0], None, "layers"), (axes[1], blocks, "blocks")):
        for ax in row:
            ax.set_xscale("log", base=2)
            if ticks:
                ax.set_xticks(ticks, [str(tick) for tick in ticks])
                ax.minorticks_off()
            ax.set_xlabel(word, fontsize=8)
            ax.legend(frameon=False, fontsize=7)
    save(figure, path)


def _draw_trained(cells: Sequence[Cell], axes: Any, prefix: str, names: dict[str, str], depths: list[int]) -> None:
    """Growth and bound in the first of two axes, the interaction in the second, where dots are seeds."""
    first, second = axes
    for number, (kind, label) in enumerate(names.items()):
        color = f"C{number}"
        found = [results(cells, kind=f"{prefix} {kind}", depth=depth) for depth in depths]
        for name, style in (("growth", "o-"), ("bound", "--")):
            means = [average(r[name] for r in group) for group in found]
            first.plot(depths, means, style, ms=3, color=color, label=f"{label}, {name}")
        for group, depth in zip(found, depths, strict=True):
            second.plot([depth] * len(group), [100 * r["interaction"] for r in group], ".", ms=3, color=color, alpha=0.5)
        means = [100 * average(r["interaction"] for r in group) for group in found]
        second.plot(depths, means, "-", color=color, label=label)
    second.set_ylim(bottom=0)
    first.set_title(f"{prefix}: log growth", fontsize=9)
    second.set_title(f"{prefix}: interaction, % of the sum", fontsize=9)


DERIVED = "derived from Proposition 1"

STUDY = Study(
    name="proposition1",
    claims=[
        Claim("bound", "Proposition 1", "The growth never exceeds the bound (largest log growth - log bound).", "at most 0",
              excess),
        ours("aligned", "The aligned construction attains (1 + eta m)^L = 2.3e9 (its growth over that).", "1",
             attained, DERIVED),
        ours("orthogonal-growth", "Random orthogonal W and random BA stay far below the bound (growth at L = 64).", "1.29",
             by_mean(lambda cells, s: growths(cells, s, "orthogonal"), above=1, below=2), DERIVED),
        ours("skip-growth", "So does a residual stack with a norm before each layer (growth at L = 64).", "1.35",
             by_mean(lambda cells, s: growths(cells, s, "skip"), above=1, below=2), DERIVED),
        share_claim("orthogonal", "orthogonal", "a stack of random orthogonal W"),
        share_claim("pre-norm", "pre-norm", "a residual stack with a norm before each layer"),
        *trained_claims("plain", "trained plain", "without normalization", "16"),
        *trained_claims("normed", "trained normed", "with normalization", "16"),
        *transformer_claims("normed", "in a transformer"),
        *transformer_claims("held", "in a transformer with its norms held"),
        ours("transformer-norms", "In a transformer the layers act together more if the norms are held (interaction with all "
             "layers, norms held minus norms as they are).", "not measured",
             by_mean(held_minus_normed, unit=" points", above=0)),
    ],
    settings={
        "laptop": COMMON | {
            "seeds": 5, "steps": 200,
            "transformer": {
                "model": "minilm-l6", "data": "trec", "depths": [2, 4, 6], "r": 8, "eta": 2.0, "train_rows": 512,
                "test_rows": 100, "max_length": 16, "matched_rows": 64, "batch": 8, "steps": 50,
            },
        },
        "paper": COMMON | {
            "seeds": 10, "steps": 1000, "pretrain_rows": 50000,
            "transformer": {
                "model": "Snowflake/snowflake-arctic-embed-l", "data": "trec", "depths": [2, 4, 8, 16, 24], "r": 8, "eta": 2.0,
                "train_rows": 4096, "test_rows": 400, "max_length": 64, "matched_rows": 64, "batch": 32, "steps": 1000,
            },
        },
    },
    differs=both_scales(
        "The paper proves the bound and measures nothing. Constructions: m = .1, eta = 4, width 64, rank 8. 'Far below' is "
        "taken to mean a growth under 2, 'as the bound allows' at least half of its exponent. Trained networks: ReLU stacks on "
        "MNIST digits, adapted to the same digits transposed, with ALLoRA (eta = 2, SGD). At every depth the learning rate is "
        "such that the first step changes the hidden state by 2 %. The interaction is |effect of all layers together - sum of "
        "the effects of each layer alone| / |that sum|. Transformers: the first blocks of MiniLM-L6 (of arctic-embed-l at "
        "paper scale) on TREC, ALLoRA on all their linear layers, a fixed random head on the standardized mean over tokens, "
        "Adam; the first step changes the head's input by 2 %. Here the interaction is between blocks, not single layers. The "
        "bound has a factor for each adapted layer, six per block, as if q, k and v followed one another; the four layers that "
        "do follow one another (v, output, up, down) make up about three quarters of its exponent. 'Norms held': every "
        "LayerNorm divides by the standard deviation that the frozen network has at that token. The network without adapters "
        "is then unchanged, and no norm counteracts the adapters. (One constant per norm would change that network: single "
        "tokens have deviations ten times those of others.) Changed after a first look: the construction 'skip', the growths "
        "at L = 64 and the comparison with 4 layers were added, and 'pre-norm' starts from an input of another length. For "
        "transformers, Adam replaced SGD, which diverged with 2 blocks at the same first step. The interaction per size of the "
        "effect was added when that size was seen to grow with depth (the number of steps is the same at every depth, and only "
        "the first step is matched)."
    ),
    plan=plan,
    work=work,
    draw=draw,
    needs=lambda settings: ("mnist", settings["transformer"]["data"]),
    libraries=("transformers", "peft"),
)  # fmt: skip
