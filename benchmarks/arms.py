"""The arms: one training step of each method on the same model and the same batch.

Every arm adapts the same linear layers (all but the output layer and a classifier) with the same rank; alpha = r, so that
nobody scales. What a package does not bring itself is the same for all: the model, its loss, the optimizer (AdamW, fused,
which is the default of transformers' Trainer). loralib and LitGPT have models of their own; here their linear layer takes the
place of the model's.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from alloralib import AlloraConfig, fast_paths, fuse_elementwise
from alloralib.evaluation.next_token import score_next_tokens
from alloralib.training.memory import keep_freed_memory

Batch = dict[str, Any]
HEADS = ("lm_head", "classifier", "score")
LEARNING_RATE = 1e-4
TITLES = {
    "frozen": "frozen model (the limit)",
    "allora": "**alloralib, ALLoRA**",
    "allora-chunked": "alloralib, loss in chunks",
    "allora-train": "alloralib, as `allora train`",
    "allora-unfused": "alloralib, no fused node",
    "allora-default": "alloralib, torch's products",
    "peft-lora": "PEFT LoRA, dropout 0",
    "peft-lora-dropout": "PEFT LoRA, dropout .05",
    "peft-rslora": "PEFT rsLoRA",
    "peft-dora": "PEFT DoRA",
    "loralib": "loralib LoRA",
    "litgpt": "LitGPT LoRA",
    "full": "full fine-tuning",
}
CHUNKED = ("allora-chunked", "allora-train")
"""Arms whose loss is made as `allora train` makes it; they need labels of tokens."""
PEERS = {"loralib": "loralib", "litgpt": "litgpt.lora"}
PATHS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "allora-unfused": lambda: fast_paths(fused=False),
    "allora-default": lambda: fast_paths(onednn=False),
}


@dataclass
class Arm:
    """A model that is ready to be trained on one batch, again and again.

    Attributes:
        model: called with the batch; compiled or not.
        batch: arguments of the forward pass. With labels the model makes the loss; without, see `_projected`.
        optimizer: None where nothing is trained.
        paths: the fast paths under which the arm runs.
        chunked: whether the loss is made as `allora train` makes it, and not by the model.
    """

    model: Any
    batch: Batch
    optimizer: torch.optim.Optimizer | None
    paths: Callable[[], AbstractContextManager[Any]] = nullcontext
    chunked: bool = False

    def loss(self) -> Tensor:
        """The forward pass."""
        with self.paths():
            if self.chunked:
                inputs = {key: value for key, value in self.batch.items() if key != "labels"}
                return score_next_tokens(self.model, inputs, self.batch["labels"]).loss.mean()
            output = self.model(**self.batch)
            return output.loss if "labels" in self.batch else _projected(output.last_hidden_state)

    def step(self) -> None:
        """Forward, backward, optimizer step."""
        loss = self.loss()
        with self.paths():
            loss.backward()
        self.update()

    def update(self) -> None:
        """The optimizer's step, and no gradient left behind."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        for value in self.batch.values():
            if isinstance(value, Tensor):
                value.grad = None


def _projected(hidden: Tensor) -> Tensor:
    """A loss whose gradient is a wave over the hidden states: dense, and as good as free."""
    return (hidden * torch.linspace(-1, 1, hidden.shape[-1], dtype=hidden.dtype)).sum()


def missing() -> dict[str, str]:
    """Why an arm cannot run here: its package's import error."""
    reasons: dict[str, str] = {}
    for name, module in PEERS.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            reasons[name] = str(error)
    return reasons


def linear_names(model: nn.Module) -> list[str]:
    """Full names of the layers that are adapted, in the model's order."""
    found = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    return [name for name in found if name.rpartition(".")[2] not in HEADS]


def build(name: str, model: Any, batch: Batch, r: int) -> Arm:
    """The arm of that name; the model becomes the arm's and is changed."""
    torch.manual_seed(0)
    if name == "frozen":
        return _frozen(model, batch)
    model = model.requires_grad_(True) if name == "full" else _adapted(name, model, r)
    if name == "allora-train":
        fuse_elementwise(model)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, fused=True)
    return Arm(model, batch, optimizer, PATHS.get(name, nullcontext), chunked=name in CHUNKED)


def build_all(names: Iterable[str], base: Any, batch: Batch, r: int) -> dict[str, Arm]:
    """Arms that share the frozen weights, so that none has the better place in memory; full fine-tuning has its own.

    The weights of a real model do not stay in a cache from one arm to the next. Memory that is freed is kept, as the `allora`
    command does it: or the arm behind one that needs less would pay for the pages of both, a twelfth of a step.
    """
    keep_freed_memory()
    frozen = {id(p): p for p in base.parameters()}
    return {name: build(name, copy.deepcopy(base, {} if name == "full" else dict(frozen)), batch, r) for name in names}


def _frozen(model: Any, batch: Batch) -> Arm:
    model.train().requires_grad_(False)
    if "input_ids" in batch:
        embedded = model.get_input_embeddings()(batch["input_ids"]).requires_grad_(True)
        batch = {"inputs_embeds": embedded} | {key: value for key, value in batch.items() if key != "input_ids"}
    return Arm(model, batch, None)


def _adapted(name: str, model: Any, r: int) -> Any:
    layers = linear_names(model)
    if name in PEERS:
        model.requires_grad_(False)
        for path in layers:
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, _REPLACE[name](model.get_submodule(path), r))
        return model
    settings: dict[str, Any] = {"r": r, "target_modules": layers}
    if name.startswith("allora"):
        return get_peft_model(model, AlloraConfig(**settings))
    return get_peft_model(
        model,
        LoraConfig(
            lora_alpha=r,
            lora_dropout=0.05 if name == "peft-lora-dropout" else 0.0,
            use_dora=name == "peft-dora",
            use_rslora=name == "peft-rslora",
            **settings,
        ),
    )


def _loralib(linear: nn.Linear, r: int) -> nn.Module:
    layer = importlib.import_module(PEERS["loralib"]).Linear(
        linear.in_features, linear.out_features, r=r, lora_alpha=r, merge_weights=False,
        bias=linear.bias is not None, dtype=linear.weight.dtype,
    )  # fmt: skip
    layer.weight, layer.bias = linear.weight, linear.bias
    return layer


def _litgpt(linear: nn.Linear, r: int) -> nn.Module:
    layer = importlib.import_module(PEERS["litgpt"]).LoRALinear(
        linear.in_features, linear.out_features, r=r, lora_alpha=r, bias=linear.bias is not None
    )
    layer.linear = linear
    return layer.to(linear.weight.dtype)


_REPLACE: dict[str, Callable[[nn.Linear, int], nn.Module]] = {"loralib": _loralib, "litgpt": _litgpt}
