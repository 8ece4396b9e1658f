"""The arms: a training step of each method on the same model and batch.

Every arm adapts the same linear layers (all but the output layer and a classifier) at the same rank, with alpha = r. Model,
loss, batch and optimizer (fused AdamW, the default of transformers' Trainer) are the same for all. loralib and LitGPT come
with models of their own; here their linear layer replaces the model's.
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
    "frozen": "frozen model",
    "allora-train": "**ALLoRA, as `allora train`**",
    "allora-chunked": "ALLoRA, chunked loss",
    "allora": "**ALLoRA**",
    "allora-unfused": "ALLoRA, no fused node",
    "allora-default": "ALLoRA, no oneDNN",
    "peft-lora": "PEFT LoRA, no dropout",
    "peft-lora-dropout": "PEFT LoRA, dropout .05",
    "peft-rslora": "PEFT rsLoRA",
    "peft-dora": "PEFT DoRA",
    "loralib": "loralib LoRA",
    "litgpt": "LitGPT LoRA",
    "full": "full fine-tuning",
}
"""The arms by name. Committed records of 0.1.0 hold two more, of fast paths that no longer exist; no table shows them."""
CHUNKED = ("allora-chunked", "allora-train")
"""Arms that take the loss in chunks, as `allora train` does. They need a label for each token."""
ALLORA = [name for name in TITLES if name.startswith("allora")]
OTHERS = [name for name in TITLES if name not in ("frozen", *ALLORA)]
"""Arms of other methods and packages."""
PEERS = {"loralib": "loralib", "litgpt": "litgpt.lora"}
PATHS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "allora-unfused": lambda: fast_paths(fused=False),
    "allora-default": lambda: fast_paths(onednn=False),
}


@dataclass
class Arm:
    """A model and one batch, ready for any number of training steps.

    Attributes:
        model: the model, compiled or not.
        batch: arguments of the forward pass. If they have labels, the model computes the loss; if not, see `_projected`.
        optimizer: None if nothing is trained.
        paths: a context manager that sets the fast paths of this arm.
        chunked: whether the loss is computed in chunks, as in `allora train`, and not by the model.
    """

    model: Any
    batch: Batch
    optimizer: torch.optim.Optimizer | None
    paths: Callable[[], AbstractContextManager[Any]] = nullcontext
    chunked: bool = False

    def loss(self) -> Tensor:
        """Run the forward pass."""
        with self.paths():
            if self.chunked:
                inputs = {key: value for key, value in self.batch.items() if key != "labels"}
                return score_next_tokens(self.model, inputs, self.batch["labels"]).loss.mean()
            output = self.model(**self.batch)
            return output.loss if "labels" in self.batch else _projected(output.last_hidden_state)

    def step(self) -> None:
        """Run the forward pass, the backward pass and the optimizer's step."""
        loss = self.loss()
        with self.paths():
            loss.backward()
        self.update()

    def update(self) -> None:
        """Run the optimizer's step and drop all gradients."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        for value in self.batch.values():
            if isinstance(value, Tensor):
                value.grad = None


def _projected(hidden: Tensor) -> Tensor:
    """A loss that costs next to nothing and whose gradient is dense: a weighted sum of the hidden states."""
    return (hidden * torch.linspace(-1, 1, hidden.shape[-1], dtype=hidden.dtype)).sum()


def missing() -> dict[str, str]:
    """The arms whose package cannot be imported, with the import error."""
    reasons: dict[str, str] = {}
    for name, module in PEERS.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            reasons[name] = str(error)
    return reasons


def linear_names(model: nn.Module) -> list[str]:
    """Full names of the layers to adapt, in the model's order."""
    found = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    return [name for name in found if name.rpartition(".")[2] not in HEADS]


def build(name: str, model: Any, batch: Batch, r: int) -> Arm:
    """Build an arm. It takes over the model and changes it."""
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
    """Build several arms on one copy of the frozen weights. Full fine-tuning gets its own copy.

    Shared weights give every arm the same place in memory. Freed memory stays with the process, as in the `allora` command;
    otherwise an arm that runs behind one with a smaller peak would pay for the page faults of both.
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
