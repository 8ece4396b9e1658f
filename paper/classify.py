"""Train and score one classifier in plain PyTorch: the unit of work of the text-classification tables and related studies.

A run is a function of its settings, the data and one seed. Only the adapter's dropout is switched on; the model's own would add
to the dropout that is studied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from peft import TaskType, get_peft_model
from torch import Tensor
from transformers import get_scheduler
from transformers.optimization import Adafactor
from transformers.utils import logging

from alloralib.adapters.methods import make_config, optimizer_groups
from alloralib.adapters.monitor import layer_states
from alloralib.data.examples import build_examples, collator
from alloralib.data.forms import Columns
from alloralib.data.labels import label_ids, label_names
from alloralib.data.parts import load_parts, sample
from alloralib.data.registry import REGISTRY
from alloralib.errors import ConfigError, did_you_mean
from alloralib.ops.scale import row_norms, scale
from alloralib.training.batches import BucketBatches
from alloralib.training.models import load_model, load_tokenizer, locate

from .cells import Result, Settings, pack
from .data import StudyData

EVALUATION_BATCH = 64
DIVERGED = 1e30

RUN: Settings = {
    "method": "lora", "r": 16, "eta": None, "dropout": None, "apply_to": None, "target_modules": "all-linear",
    "optimizer": "adafactor", "learning_rate": 1e-3, "schedule": "cosine", "warmup": 0.05, "weight_decay": 1e-5,
    "max_grad_norm": 1.0, "batch_size": 16, "epochs": 2, "mimic": None, "train_rows": None, "validation_rows": 0,
    "test_rows": None, "score": "test", "max_length": 64, "dtype": "float32", "seed": 0,
}  # fmt: skip
"""The settings of a run and their defaults. `model` and `data` (a registered data set) are required. `mimic` is an eta: at
every step the learning rate is multiplied by the mean scale s(eta), over all rows, that ALLoRA would have at these weights.
`score` is the part to score at the end, test or validation; the other part is never read."""

LIBRARIES = ("transformers", "peft")
"""What a study of classifiers lists as `libraries`."""


@dataclass(frozen=True)
class Rows:
    """The tokenized rows of one part."""

    examples: list[dict[str, Any]]
    labels: Tensor  # (N,) int64

    def lengths(self) -> list[int]:
        """The number of tokens of every row."""
        return [len(example["input_ids"]) for example in self.examples]


class Run:
    """A run in progress.

    Args:
        settings: as in `RUN`.
        data: where the data set is.

    Attributes:
        model: the adapted classifier.
        step, epoch: the number of completed optimizer steps and epochs.
    """

    def __init__(self, settings: Settings, data: StudyData) -> None:
        unknown = sorted(set(settings) - {*RUN, "model", "data"})
        if unknown:
            raise ConfigError(f"a run has no setting {unknown[0]!r}", remedy=did_you_mean(unknown[0], [*RUN, "model", "data"]))
        self.settings: Settings = RUN | settings
        s = self.settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        path = locate(s["model"])
        self.rows, self.names, tokenizer = _rows(
            data, path, s["data"], s["train_rows"], s["validation_rows"], s["test_rows"], s["max_length"], s["seed"]
        )
        self.collate = collator("classification", tokenizer)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.manual_seed(s["seed"])  # the new head
        base = load_model(
            path, task="classification", labels=self.names, dtype=getattr(torch, s["dtype"]),
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        torch.manual_seed(s["seed"])  # A
        self.model: Any = get_peft_model(
            base,
            make_config(
                s["method"], r=s["r"], eta=s["eta"], dropout=s["dropout"], apply_to=s["apply_to"],
                target_modules=s["target_modules"], task_type=TaskType.SEQ_CLS,
            ),
        ).to(self.device)  # fmt: skip
        self.step = self.epoch = 0
        self.train_loss: list[float] = []

    def train(self, watch: Callable[[Run], None]) -> None:
        """Train for all epochs, calling `watch` before the first step and after each one."""
        s = self.settings
        torch.manual_seed(s["seed"])  # masks
        batches = BucketBatches(self.rows["train"].lengths(), s["batch_size"], s["seed"], pool=50)  # as in the records
        optimizer = make_optimizer(s, self.model)
        steps = len(batches) * s["epochs"]
        schedule = get_scheduler(s["schedule"], optimizer, round(s["warmup"] * steps), steps)
        watch(self)
        for epoch in range(s["epochs"]):
            batches.set_epoch(epoch)
            for chosen in batches:
                self._mode(training=True)
                loss = F.cross_entropy(self._logits("train", chosen), self.rows["train"].labels[chosen].to(self.device))
                loss.backward()
                torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], s["max_grad_norm"])
                if s["mimic"] is not None:
                    for group in optimizer.param_groups:
                        group["lr"] *= self.mean_scale(s["mimic"])
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()  # computes the rate from its base, so the factor of `mimic` does not accumulate
                self.train_loss.append(loss.item())
                self.step += 1
                self.epoch = epoch + (self.step % len(batches) == 0)
                watch(self)

    @torch.inference_mode()
    def score(self, part: str) -> Result:
        """Accuracy in percent, mean cross-entropy in nats, and which rows were right, as `cells.pack` encodes it."""
        self._mode(training=False)
        rows = self.rows[part]
        order = sorted(range(len(rows.examples)), key=rows.lengths().__getitem__)
        logits = torch.empty(len(order), len(self.names))
        for start in range(0, len(order), EVALUATION_BATCH):
            chosen = order[start : start + EVALUATION_BATCH]
            logits[chosen] = self._logits(part, chosen).cpu()
        right = (logits.argmax(1) == rows.labels).tolist()
        return {
            "accuracy": 100 * sum(right) / len(right), "loss": finite(F.cross_entropy(logits, rows.labels).item()),
            "correct": pack(right),
        }  # fmt: skip

    def row_norm(self) -> float:
        """The mean over layers of the mean norm of the rows of BA, times the adapter's scaling."""
        states = [state.mean_norm for state in layer_states(self.model).values()]
        return finite(sum(states) / len(states))

    def mean_scale(self, eta: float) -> float:
        """The mean over layers and rows of the scale s(eta) at these weights, for any method."""
        with torch.no_grad():
            found = [scale(norms, eta).mean().item() for norms in _all_row_norms(self.model)]
        return finite(sum(found) / len(found))

    def _logits(self, part: str, chosen: list[int]) -> Tensor:
        batch = self.collate([self.rows[part].examples[i] for i in chosen])
        batch.pop("labels")
        return self.model(**{k: v.to(self.device) for k, v in batch.items()}).logits.float()

    def _mode(self, *, training: bool) -> None:
        self.model.eval()
        for name, module in self.model.named_modules():
            if training and "lora_dropout" in name:
                module.train()


def classify(settings: Settings, data: StudyData, watch: Callable[[Run], None] = lambda run: None) -> Result:
    """Train and score one classifier.

    Args:
        settings: replace those of `RUN`. The same settings give the same result.
        data: where the data set is.
        watch: called with the run before the first step and after each one.

    Returns:
        accuracy, loss and correct of the scored part; train_loss of the last step; row_norm at the end.

    Raises:
        AlloraError: an unknown setting or optimizer, or data or a model that cannot be read.
    """
    run = Run(settings, data)
    run.train(watch)
    return run.score(run.settings["score"]) | {"train_loss": finite(run.train_loss[-1]), "row_norm": run.row_norm()}


def data_sets(settings: Settings) -> tuple[str, ...]:
    """The data sets that a study with these settings needs: those of its columns or tasks, or of its one run."""
    parts = settings.get("columns") or settings.get("tasks") or {"": settings["run"]}
    return tuple(dict.fromkeys(part["data"] for part in parts.values()))


def finite(value: float) -> float:
    """The value, or `DIVERGED` for NaN and infinity: a diverged run is a result, and JSON cannot hold those."""
    return value if math.isfinite(value) else DIVERGED


def make_optimizer(settings: Settings, model: Any) -> torch.optim.Optimizer:
    """AdamW, SGD, SGD with momentum .9, or Adafactor as in the authors' code: fixed rate, no parameter scale, clipped at 1."""
    lr, decay = settings["learning_rate"], settings["weight_decay"]
    parameters: Any = optimizer_groups(model, settings["method"], learning_rate=lr, weight_decay=decay)
    name = settings["optimizer"]
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
    if name in ("sgd", "momentum"):
        return torch.optim.SGD(parameters, lr=lr, weight_decay=decay, momentum=0.9 if name == "momentum" else 0.0)
    if name == "adafactor":
        return Adafactor(
            parameters, lr=lr, weight_decay=decay, relative_step=False, scale_parameter=False, warmup_init=False,
            clip_threshold=1.0, decay_rate=-0.8, beta1=None,
        )  # fmt: skip
    raise ConfigError(f"there is no optimizer {name!r}", remedy="use adamw, sgd, momentum or adafactor")


def _all_row_norms(model: Any) -> list[Tensor]:
    return [
        row_norms(module.lora_A["default"].weight, module.lora_B["default"].weight) * abs(module.scaling["default"])
        for module in model.modules()
        if "default" in getattr(module, "lora_A", ())
    ]


@lru_cache(maxsize=16)
def _rows(
    data: StudyData, path: str, name: str, train: int | None, validation: int, test: int | None, max_length: int, seed: int
) -> tuple[dict[str, Rows], list[str], Any]:
    """The tokenized parts, the class names and the tokenizer.

    The seed chooses among the training rows. Which rows are held out does not depend on it.
    """
    columns = Columns.of("classification", {})
    tokenizer = load_tokenizer(path)
    parts = load_parts(
        "classification", columns, data=name, data_dir=data.registered, validation_share=0.1 if validation else None,
        validation_rows=validation or None, test_rows=test, held_out="random",
    )  # fmt: skip
    names = label_names(parts.train, "label", REGISTRY[name].labels)
    tables = {"train": sample(parts.train, train, seed), "test": parts.test} | (
        {"validation": parts.validation} if validation else {}
    )
    rows = {}
    for part, table in tables.items():
        assert table is not None
        made = build_examples("classification", table, columns, processor=tokenizer, names=names, max_length=max_length)
        rows[part] = Rows(made.to_list(), torch.tensor(label_ids(table, "label", names)))
    return rows, names, tokenizer
