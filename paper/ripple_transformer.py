"""Proposition 1 in a pretrained transformer: how much of the adapters' effect comes from blocks acting together.

The network is the first blocks of a pretrained encoder or decoder with ALLoRA on every linear layer. The kind "held" keeps the
statistics of every norm at those of the frozen network, token by token: without adapters the network is unchanged, and every
norm is an affine map that does not counteract what an adapter adds to its input.
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

from alloralib.errors import ModelError, TrainingError
from alloralib.ops.ripple import low_rank_norm, ripple_bound

from .cells import Key, Result, Settings
from .data import StudyData
from .held_norm import hold_norms
from .mlp import batches

KINDS = ("normed", "held")
"""Norms as they are, or with their statistics held at those of the frozen network."""


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """Adapt the first `depth` blocks to a text classification with Adam, and measure the adapters.

    All depths and kinds of a seed share rows, their order and the head.
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


class Rows(NamedTuple):
    """Tokenized texts: each input (N, T), padded on the right; labels (N,)."""

    inputs: dict[str, Tensor]
    labels: Tensor

    def take(self, rows: Tensor | slice) -> Rows:
        """Some of the rows, without the columns that are padding in all of those."""
        chosen = {name: value[rows] for name, value in self.inputs.items()}
        longest = int(chosen["attention_mask"].sum(1).max())
        return Rows({name: value[:, :longest] for name, value in chosen.items()}, self.labels[rows])


def load(chosen: Settings, data: StudyData, seed: int) -> tuple[Rows, Rows, Any]:
    """Load the training rows, the test rows, and the model without its head.

    Args:
        chosen: model, data (a registered text classification), train_rows, test_rows, max_length.
        data: where the data set is.
        seed: chooses the rows.

    Raises:
        AlloraError: the data or the model cannot be read.
    """
    import transformers

    from alloralib.data.labels import label_ids, label_names
    from alloralib.data.parts import load_parts
    from alloralib.data.registry import REGISTRY
    from alloralib.training.models import load_model, load_tokenizer, locate

    known = REGISTRY[chosen["data"]]
    parts = load_parts(
        known.kind, known.columns, data=known.name, data_dir=data.root, data_seed=seed, evaluation_seed=seed,
        train_rows=chosen["train_rows"], test_rows=chosen["test_rows"], held_out="random",
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
    transformers.logging.set_verbosity_error()  # a warning that the head is new; it is not used
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stderr(io.StringIO()):
        model = load_model(path, task=known.kind, labels=names, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id)
    return found[0], found[1], model.base_model


class AdaptedBlocks:
    """The first blocks of a transformer with ALLoRA on every linear layer.

    Args:
        base: a model that keeps its blocks, `config.num_hidden_layers` of them, in one list. Changed in place.
        depth: the number of blocks to keep.
        held: whether the norms keep the statistics that the frozen network has at the same token.
        r, eta: the adapters' rank and eta.
        seed: draws A.

    Raises:
        ModelError: there is no such list, it is shorter than `depth`, or with `held` a block has no norm.
    """

    def __init__(self, base: Any, depth: int, *, held: bool, r: int, eta: float, seed: int) -> None:
        from peft import get_peft_model

        from alloralib.adapters import make_config
        from alloralib.adapters.layers import AlloraLayer

        self.blocks = blocks_of(base)
        if depth > len(self.blocks):
            raise ModelError(f"the model has {len(self.blocks)} blocks, not {depth}", remedy="give smaller transformer depths")
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
        self.center: Tensor
        self.spread: Tensor

    def _keep(self, block: nn.Module, given: Any, output: Any) -> None:
        self.output = output[0] if isinstance(output, tuple) else output

    def hidden(self, rows: Rows, on: set[int] | None = None) -> Tensor:
        """The output of the last block (N, T, d), zero at padding, with the adapters of the blocks `on` (None: all)."""
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
        """Draw a linear head that is never trained. Its input is standardized by the frozen network's mean and spread."""
        with torch.no_grad():
            pooled = _pooled(self.hidden(rows, set()), rows)
        self.center = pooled.mean(0)
        self.spread = (pooled - self.center).square().mean().sqrt()
        self.top = torch.randn(classes, pooled.shape[1], generator=g) / math.sqrt(pooled.shape[1])

    def read(self, h: Tensor, rows: Rows) -> Tensor:
        """The head's input (N, d): the mean over the tokens of each text, standardized."""
        return (_pooled(h, rows) - self.center) / self.spread

    def head(self, h: Tensor, rows: Rows) -> Tensor:
        """Logits (N, classes)."""
        return F.linear(self.read(h, rows), self.top)

    def fit(self, rows: Rows, order: Sequence[Tensor], lr: float) -> None:
        """Train the adapters with Adam on the cross-entropy; `order` holds the row numbers of every step."""
        optimizer = torch.optim.Adam(self.factors, lr=lr)
        for chosen in order:
            self._backward(rows.take(chosen))
            optimizer.step()

    def matched_rate(self, rows: Rows, wanted: float) -> float:
        """The learning rate whose first step changes the head's input by the share `wanted`, to within 1 %."""
        self._backward(rows)
        saved = [p.detach().clone() for p in self.factors]
        lr = 1e-4
        with torch.no_grad():
            before = self.read(self.hidden(rows, set()), rows)
            for _ in range(10):  # nearly linear in the rate, so two or three rounds are enough
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
        """Measure growth and bound (as logarithms), the interaction between blocks, and the accuracy before and after.

        The bound is that of a chain of all adapted layers, with one factor each. Layers that work in parallel in a block
        (q, k and v) are counted as if one followed the other.
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
    """The list of encoder or decoder blocks: the first list that is as long as the config says.

    Raises:
        ModelError: there is no such list.
    """
    wanted = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise ModelError(
        f"no list of {wanted} blocks in {type(model).__name__}", remedy="give an encoder or decoder of plain blocks"
    )
