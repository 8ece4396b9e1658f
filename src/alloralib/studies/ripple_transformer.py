"""Proposition 1 in a pretrained transformer: adapters of growing depth, and how much of their effect is interaction.

The network is the first blocks of a pretrained encoder or decoder with ALLoRA on every linear layer of them. "Without
normalisation" is the same network with the statistics of its norms held at those of the frozen network, token by token: the
network without adapters is then the very same, every norm is an affine map, and nothing undoes what an adapter does to a
norm's input.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError, TrainingError
from ..ops.ripple import low_rank_norm, ripple_bound
from .frame import Cell, Finding, Key, Result, Settings, judged, select
from .held_norm import hold_norms
from .images import StudyData
from .mlp import batches

KINDS = ("normed", "held")
"""With its norms as they are; with their statistics held at those of the frozen network."""


def plan(settings: Settings) -> list[Key]:
    """A cell per kind, depth and seed."""
    seeds, depths = range(settings["seeds"]), settings["transformer"]["depths"]
    return [
        {"kind": f"transformer {kind}", "depth": depth, "seed": seed} for kind in KINDS for depth in depths for seed in seeds
    ]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """Adapt the first `depth` blocks to a text classification with Adam, and take the adapters apart.

    All depths and kinds of a seed share rows, order and head.
    """
    chosen = settings["transformer"]
    train, test, base = load(chosen, data, key["seed"])
    g = torch.Generator().manual_seed(3000 + key["seed"])
    net = AdaptedBlocks(
        base, key["depth"], held=key["kind"].endswith("held"), r=chosen["r"], eta=chosen["eta"], seed=key["seed"]
    )
    first = train.take(slice(0, chosen["matched_rows"]))
    net.fix_head(first, base.config.num_labels, g)
    lr = net.matched_rate(first, settings["first_step"])
    net.fit(train, batches(len(train.labels), chosen["batch"], chosen["steps"], g), lr)
    return net.measure(test) | {"rate": lr}


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """Share and interaction as for the trained networks, the interaction per size of the effect, and what norms do to it."""
    deepest = max(settings["transformer"]["depths"])
    found: list[Finding] = []
    for kind in KINDS:
        name = f"transformer {kind}"
        found += trained_findings(cells, name, f"transformer-{kind}", deepest)
        pairs = zip(select(cells, kind=name, depth=2), select(cells, kind=name, depth=deepest), strict=True)
        ratios = [_per_change(last) / _per_change(first) for first, last in pairs]
        found.append(judged(f"transformer-{kind}-per-change", ratios, above=1, over="seeds"))
    normed, held = (select(cells, kind=f"transformer {kind}", depth=deepest) for kind in KINDS)
    more = [100 * (b.result["interaction"] - a.result["interaction"]) for a, b in zip(normed, held, strict=True)]
    return [*found, judged("transformer-norms", more, unit=" points", above=0, over="seeds")]


def _per_change(cell: Cell) -> float:
    """Interaction grows with the size of the effect itself, to first order in proportion."""
    return cell.result["interaction"] / cell.result["change"]


def trained_findings(cells: Sequence[Cell], kind: str, name: str, deepest: int) -> list[Finding]:
    """Of trained adapters: the share of the bound's exponent at the deepest, and the interaction there against 2 and 4."""
    last = select(cells, kind=kind, depth=deepest)
    shares = [100 * c.result["growth"] / c.result["bound"] for c in last]
    found = [judged(f"{name}-share", shares, unit=" %", above=50, over="seeds")]
    for depth in (2, 4):
        first = select(cells, kind=kind, depth=depth)
        grows = [100 * (b.result["interaction"] - a.result["interaction"]) for a, b in zip(first, last, strict=True)]
        found.append(judged(f"{name}-interaction-{depth}", grows, unit=" points", above=0, over="seeds"))
    return found


class Rows(NamedTuple):
    """Texts as a model takes them: each input (N, T), padded on the right; labels (N,)."""

    inputs: dict[str, Tensor]
    labels: Tensor

    def take(self, rows: Tensor | slice) -> Rows:
        """Some of the rows, without the columns that are padding in all of them."""
        chosen = {name: value[rows] for name, value in self.inputs.items()}
        longest = int(chosen["attention_mask"].sum(1).max())
        return Rows({name: value[:, :longest] for name, value in chosen.items()}, self.labels[rows])


def load(chosen: Settings, data: StudyData, seed: int) -> tuple[Rows, Rows, Any]:
    """Rows to train and to measure on, and the model without its head.

    Args:
        chosen: model, data (the name of a registered classification of texts), train_rows, test_rows, max_length.
        seed: of the choice of rows.

    Raises:
        AlloraError: data or a model that cannot be read.
    """
    import transformers

    from ..data.labels import label_ids, label_names
    from ..data.parts import load_parts
    from ..data.registry import REGISTRY
    from ..training.models import load_model, load_tokenizer, locate

    known = REGISTRY[chosen["data"]]
    parts = load_parts(
        known.kind, known.columns, data=known.name, data_dir=data.root, data_seed=seed, evaluation_seed=seed,
        train_rows=chosen["train_rows"], test_rows=chosen["test_rows"],
    )  # fmt: skip
    assert known.columns.text is not None
    assert known.columns.label is not None
    names = label_names(parts.train, known.columns.label, known.labels)
    path = locate(chosen["model"])
    tokenizer = load_tokenizer(path)
    tokenizer.padding_side = "right"
    found: list[Rows] = []
    for table in (parts.train, parts.test):
        texts = table.texts(known.columns.text, "text-column")
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=chosen["max_length"], return_tensors="pt")
        found.append(Rows(dict(encoded), torch.tensor(label_ids(table, known.columns.label, names))))
    transformers.logging.set_verbosity_error()  # its own head is drawn at random, which is reported, and not used
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stderr(io.StringIO()):
        model = load_model(path, task=known.kind, labels=names, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id)
    return found[0], found[1], model.base_model


class AdaptedBlocks:
    """The first blocks of a transformer with ALLoRA on every linear layer in them.

    Args:
        base: a model whose config says `num_hidden_layers` and that keeps so many blocks in one list. Changed in place.
        depth: how many blocks stay.
        held: whether the norms in the blocks keep the statistics that the frozen network has at the same token.
        r, eta: of the adapters.
        seed: of A.

    Raises:
        ModelError: no such list, fewer blocks than `depth`, or with `held` a block without a norm.
    """

    def __init__(self, base: Any, depth: int, *, held: bool, r: int, eta: float, seed: int) -> None:
        from peft import get_peft_model

        from ..adapters import make_config
        from ..adapters.layers import AlloraLayer

        self.blocks = blocks_of(base)
        if depth > len(self.blocks):
            raise ModelError(f"{len(self.blocks)} blocks, and {depth} are wanted", remedy="give smaller transformer depths")
        del self.blocks[depth:]
        base.config.num_hidden_layers = depth
        self.norms = hold_norms(self.blocks) if held else []
        inside = {id(m) for m in self.blocks.modules()}
        linear = [name for name, m in base.named_modules() if id(m) in inside and isinstance(m, nn.Linear)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = get_peft_model(base.eval(), make_config("allora", r=r, eta=eta, target_modules=linear)).eval()
        self.layers = [[m for m in block.modules() if isinstance(m, AlloraLayer)] for block in self.blocks]
        self.factors = [p for block in self.layers for m in block for p in m.adapter_parameters("default")]
        self.output: Tensor
        self.blocks[-1].register_forward_hook(self._keep)
        self.top: Tensor
        self.centre: Tensor
        self.spread: Tensor

    def _keep(self, block: nn.Module, given: Any, output: Any) -> None:
        self.output = output[0] if isinstance(output, tuple) else output

    def hidden(self, rows: Rows, on: set[int] | None = None) -> Tensor:
        """What the last block gives, (N, T, d), zero at padding, with the adapters of the blocks `on` (None: all)."""
        if self.norms:
            with torch.no_grad():
                self._run(rows, set(), recording=True)
        return self._run(rows, on, recording=False) * rows.inputs["attention_mask"].unsqueeze(-1)

    def _run(self, rows: Rows, on: set[int] | None, *, recording: bool) -> Tensor:
        for norm in self.norms:
            norm.recording = recording
        for number, block in enumerate(self.layers):
            for layer in block:
                layer.enable_adapters(on is None or number in on)
        self.model(**rows.inputs)
        return self.output

    def fix_head(self, rows: Rows, classes: int, g: torch.Generator) -> None:
        """Draw a linear head; the mean and spread of what it reads are taken from the frozen network. It never learns."""
        with torch.no_grad():
            pooled = _pooled(self.hidden(rows, set()), rows)
        self.centre = pooled.mean(0)
        self.spread = (pooled - self.centre).square().mean().sqrt()
        self.top = torch.randn(classes, pooled.shape[1], generator=g) / math.sqrt(pooled.shape[1])

    def read(self, h: Tensor, rows: Rows) -> Tensor:
        """What the head reads: means over the tokens of each text, standardised, (N, d)."""
        return (_pooled(h, rows) - self.centre) / self.spread

    def head(self, h: Tensor, rows: Rows) -> Tensor:
        """Logits, (N, classes)."""
        return F.linear(self.read(h, rows), self.top)

    def fit(self, rows: Rows, order: Sequence[Tensor], lr: float) -> None:
        """Train the factors with Adam on the cross-entropy, by the rule; `order` has the row numbers of every step."""
        optimiser = torch.optim.Adam(self.factors, lr=lr)
        for chosen in order:
            self._backward(rows.take(chosen))
            optimiser.step()

    def matched_rate(self, rows: Rows, wanted: float) -> float:
        """The learning rate whose first step changes what the head reads by `wanted`, relative, within 1 %: at every depth."""
        self._backward(rows)
        saved = [p.detach().clone() for p in self.factors]
        lr = 1e-4
        with torch.no_grad():
            before = self.read(self.hidden(rows, set()), rows)
            for _ in range(10):  # nearly linear in the rate: two or three are enough
                torch.optim.Adam(self.factors, lr=lr).step()
                moved = float((self.read(self.hidden(rows), rows) - before).norm() / before.norm())
                for p, value in zip(self.factors, saved, strict=True):
                    p.copy_(value)
                if abs(moved / wanted - 1) < 0.01:
                    break
                lr *= wanted / max(moved, 1e-12)
        return lr

    def _backward(self, rows: Rows) -> None:
        loss = F.cross_entropy(self.head(self.hidden(rows), rows), rows.labels)
        for p, gradient in zip(self.factors, torch.autograd.grad(loss, self.factors), strict=True):
            p.grad = gradient

    @torch.no_grad()
    def measure(self, rows: Rows) -> Result:
        """Growth and bound as logarithms, the interaction between blocks, and accuracy without and with adapters.

        The bound is that of a chain of all adapted layers, one factor each. Those that stand beside each other in a block
        (q, k and v) are thus counted as if one followed the other.
        """
        base, every = self.hidden(rows, set()), self.hidden(rows)
        if not every.isfinite().all():
            raise TrainingError("the adapters have diverged", where=f"{len(self.blocks)} blocks", remedy="lower first_step")
        apart = sum((self.hidden(rows, {block}) - base for block in range(len(self.blocks))), torch.zeros_like(base))
        seen = rows.inputs["attention_mask"].bool()
        growth = every[seen].norm(dim=1) / base[seen].norm(dim=1).clamp(min=1e-6)
        accuracy = [float((self.head(h, rows).argmax(1) == rows.labels).float().mean()) for h in (base, every)]
        adapted = [layer for block in self.layers for layer in block]
        norms = [float(torch.linalg.matrix_norm(layer.get_base_layer().weight, ord=2)) for layer in adapted]
        bound = ripple_bound(norms, [low_rank_norm(*layer.adapter_parameters("default")) for layer in adapted])
        return {
            "growth": float(growth.log().mean()), "bound": bound.log_product - bound.log_base, "mean_ratio": bound.mean_ratio,
            "change": float((every - base).norm() / base.norm()),
            "interaction": float((every - base - apart).norm() / apart.norm().clamp(min=1e-12)),
            "accuracy_before": accuracy[0], "accuracy_after": accuracy[1],
        }  # fmt: skip


def _pooled(h: Tensor, rows: Rows) -> Tensor:
    return h.sum(1) / rows.inputs["attention_mask"].sum(1, keepdim=True)


def blocks_of(model: Any) -> nn.ModuleList:
    """The list of encoder or decoder blocks: the first that is as long as the config says.

    Raises:
        ModelError: there is none.
    """
    wanted = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise ModelError(
        f"no list of {wanted} blocks in {type(model).__name__}", remedy="give an encoder or decoder of plain blocks"
    )
