"""`RunConfig`: one training run, typed, from a YAML file and flags. Imports no torch."""

from __future__ import annotations

import re
import shlex
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ..data.forms import KINDS, LANGUAGE, PARTS, Columns, Kind
from ..data.registry import REGISTRY
from ..data.splitting import HeldOut
from ..errors import ConfigError, did_you_mean
from ..ops.family import ApplyTo

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Day = Annotated[str, BeforeValidator(lambda value: date.fromisoformat(str(value)).isoformat())]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
HeadStart = Literal["random", "zero", "logistic"]
Reporter = Literal["tensorboard", "wandb", "trackio"]

_PART_SETTINGS = {
    *("data", "data_dir", "validation_data", "validation_share", "test_data", "test_share"),
    *("train_rows", "validation_rows", "test_rows", "data_seed", "evaluation_seed", "held_out"),
}
_ALL_PARTS = sorted({part for parts in PARTS.values() for part in parts})

DEFAULT_TEST_SHARE = 0.1
DEFAULT_CHECKPOINTS = 10
DEFAULT_EPOCHS = 3.0


class RunConfig(BaseModel):
    """The settings of one training run. A setting that would have no effect in the run is refused.

    Raises:
        ConfigError: by `RunConfig.of` and `RunConfig.load`: an unknown setting (with the nearest name), a value out of
            range, or settings that contradict each other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Kind | None = Field(default=None, description=f"{', '.join(KINDS)}; not needed with a registered --data")
    model: str = Field(description="a model directory, a hub id, or a bundled model: smollm2-135m, minilm-l6")
    data: str = Field(
        description="training rows: .csv .tsv .json .jsonl .parquet, a directory of images, a registered or bundled set "
        "(`allora tasks`), or a hub id[:split]"
    )
    data_dir: str | None = Field(default=None, description="directory with the files of registered sets; default: the hub")
    output_dir: str = Field(description="directory for the adapter, its card, the record and the loss curve")
    overwrite: bool = Field(default=False, description="replace a run that is already in --output-dir")

    validation_data: str | None = Field(default=None, description="rows to choose the best checkpoint on, never trained on")
    validation_share: Share | None = Field(default=None, description="validate on this share of --data instead")
    test_data: str | None = Field(default=None, description="rows for the final score; default: a share of --data")
    test_share: Share | None = Field(default=None, description=f"test on this share of --data instead [{DEFAULT_TEST_SHARE}]")
    held_out: HeldOut = Field(
        default="stratified",
        description="stratified: shares and drawn rows have every class in its share; random: as before 0.3, which also keeps "
        "the first of equal texts with different labels",
    )
    train_rows: Positive | None = Field(default=None, description="train on at most this many rows, drawn by --data-seed")
    validation_rows: Positive | None = Field(default=None, description="at most this many, drawn by --evaluation-seed")
    test_rows: Positive | None = Field(default=None, description="at most this many, drawn by --evaluation-seed")

    text_column: str | None = Field(default=None, description="column with the text [text]")
    text_pair_column: str | None = Field(default=None, description="column with a second text, to classify pairs of texts")
    label_column: str | None = Field(default=None, description="column with the class [label]")
    image_column: str | None = Field(default=None, description="column with an image or its path [image]")
    prompt_column: str | None = Field(default=None, description="column with the prompt or question [prompt]")
    completion_column: str | None = Field(default=None, description="column with the answer to the prompt, which is trained")
    messages_column: str | None = Field(default=None, description="column with the conversation, for chat [messages]")
    choices_column: str | None = Field(default=None, description="column with the choices, for multiple-choice [choices]")
    answer_column: str | None = Field(default=None, description="column with the right choice, for multiple-choice [answer]")
    chat_date: Day | None = Field(
        default=None, description="day that a chat template with today's date is told, YYYY-MM-DD [the day the run starts]"
    )
    max_length: Positive | None = Field(
        default=None, description="tokens per row, the rest is cut [512, or as many as the model can take]"
    )

    method: str = Field(default="allora", description="allora, allora-d, allora-od, asf-lora, lora-x-eta, lora, dora, ...")
    r: int = Field(default=16, description="rank of the adapter")
    eta: float | None = Field(default=None, description="scale of the gradient of a row of BA that is zero [2.0]")
    apply_to: ApplyTo | None = Field(
        default=None,
        description="scale the gradient, the update, or (relative) the update against the frozen weight [gradient]",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="dropout of the adapter's input, for methods that have one (allora has none) [0.05]"
    )
    target_modules: str | list[str] = Field(
        default="all-linear", description="modules to adapt: names separated by commas, a regular expression, or all-linear"
    )

    head_start: HeadStart = Field(
        default="random",
        description="how a classifier's head starts: random (or as the base was trained for these classes), zero, or logistic: "
        "logistic regression on the base's features of the training rows",
    )

    learning_rate: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="peak learning rate")
    head_learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="peak learning rate of what is trained whole, such as a classifier's head [--learning-rate]"
    )
    epochs: Annotated[float, Field(gt=0)] | None = Field(default=None, description=f"passes over the rows [{DEFAULT_EPOCHS}]")
    max_steps: Positive | None = Field(default=None, description="optimizer steps, instead of --epochs")
    batch_size: Positive = Field(default=16, description="rows per forward pass and process")
    gradient_accumulation: Positive = Field(default=1, description="forward passes per optimizer step")
    optimizer: str = Field(default="adamw_torch_fused", description="an optimizer of transformers: adamw_torch, sgd, ...")
    schedule: Schedule = Field(default="cosine", description="learning rate: linear, cosine, constant, constant_with_warmup")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.05, description="share of the steps that warm up")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight decay of the optimizer")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(default=1.0, description="gradients are clipped to this norm")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="dtype of the frozen weights")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations to save memory")
    compile: bool = Field(
        default=False, description="torch.compile the blocks; the preflight says after how many steps it pays"
    )

    evaluate_every: Positive | None = Field(default=None, description="steps between validations [an epoch]")
    patience: Positive | None = Field(default=None, description="stop after this many validations without a lower loss")
    checkpoint_every: Positive | None = Field(
        default=None, description=f"steps between checkpoints; two are kept [1/{DEFAULT_CHECKPOINTS} of the run]"
    )
    rule_every: Positive | None = Field(
        default=None, description=f"steps between records of the rule's state per layer [1/{DEFAULT_CHECKPOINTS} of the run]"
    )
    skip_baselines: bool = Field(
        default=False,
        description="compare a classifier with the majority class only, not with TF-IDF and a linear probe; and a language "
        "model with itself before training only, not with examples in its prompt",
    )
    report_to: list[Reporter] = Field(default_factory=list, description="log to tensorboard, wandb, trackio too (with commas)")

    adapter_seed: Seed = Field(default=0, description="seed of the adapter's and a new head's initial weights")
    data_seed: Seed = Field(default=0, description="seed of the order of the rows, of --train-rows, and of dropout")
    evaluation_seed: Seed = Field(default=0, description="seed of the rows held out, of --validation-rows and --test-rows")

    @model_validator(mode="before")
    @classmethod
    def _split_names(cls, values: Any) -> Any:
        for name in ("target_modules", "report_to") if isinstance(values, dict) else ():
            if isinstance(values.get(name), str) and ("," in values[name] or name == "report_to"):
                values = values | {name: [n.strip() for n in values[name].split(",") if n.strip()]}
        if isinstance(values, dict) and re.fullmatch(r"[A-Za-z_][\w.]*", str(values.get("target_modules", ""))):
            values = values | {"target_modules": [values["target_modules"]]}  # one name, and no expression for all of it
        return values

    @model_validator(mode="before")
    @classmethod
    def _take_the_task_of_a_registered_set(cls, values: Any) -> Any:
        known = REGISTRY.get(str(values.get("data"))) if isinstance(values, dict) else None
        return values if known is None else {"task": known.kind} | values

    @model_validator(mode="after")
    def _check_combinations(self) -> RunConfig:
        clash = None
        if self.task is None:
            clash = f"task is not set: give --task ({', '.join(KINDS)}), or a registered set as --data"
        elif self.epochs is not None and self.max_steps is not None:
            clash = "epochs and max_steps both say how long to train: leave one out"
        elif self.test_data is not None and self.test_share is not None:
            clash = "test_data and test_share both say what to test on: leave one out"
        elif self.validation_data is not None and self.validation_share is not None:
            clash = "validation_data and validation_share both say what to validate on: leave one out"
        elif self.patience is not None and not self.validates:
            clash = "patience needs validation rows: give --validation-share or --validation-data"
        elif self.evaluate_every is not None and not self.validates:
            clash = "evaluate_every needs validation rows: give --validation-share or --validation-data"
        elif self.chat_date is not None and self.task != "chat":
            clash = f"chat_date is for chat templates, and task={self.task} has none: leave --chat-date out"
        elif self.is_language and self.head_start != "random":
            clash = f"head_start={self.head_start} is for classifiers, and task={self.task} has no head: leave --head-start out"
        elif self.is_language and self.head_learning_rate is not None:
            clash = f"head_learning_rate is for classifiers, and task={self.task} has no head: leave --head-learning-rate out"
        elif self.data_dir is not None and self.data not in REGISTRY:
            clash = f"data_dir is for registered sets, and data={self.data!r} is not one: give the file itself as --data"
        if clash:
            raise ValueError(clash)
        return self

    @property
    def kind(self) -> Kind:
        """The task, which a checked configuration always has."""
        assert self.task is not None
        return self.task

    @property
    def validates(self) -> bool:
        """Whether the run may have validation rows; a registered set can bring them."""
        return self.validation_data is not None or self.validation_share is not None or self.data in REGISTRY

    @property
    def is_language(self) -> bool:
        """Whether the run trains a causal language model."""
        return self.task in LANGUAGE

    @property
    def columns(self) -> Columns:
        """Which column holds which part of a row."""
        known = REGISTRY[self.data].columns.named() if self.data in REGISTRY else {}
        given = {part: name for part in _ALL_PARTS if (name := getattr(self, f"{part}_column")) is not None}
        return Columns.of(self.kind, known | given)

    def part_settings(self) -> dict[str, Any]:
        """The settings that say which rows are in which part, as `data.parts.load_parts` takes them."""
        return self.model_dump(include=_PART_SETTINGS)

    @classmethod
    def of(cls, settings: dict[str, Any], where: str | None = None) -> RunConfig:
        """A checked configuration.

        Args:
            settings: by field name.
            where: where they come from, for error messages (a file, the command line).

        Raises:
            ConfigError: see above.
        """
        try:
            config = cls(**settings)
            _ = config.columns
            return config
        except ValidationError as error:
            raise _explained(error.errors()[0], where) from None
        except TypeError as error:
            raise ConfigError(f"keys must be names: {error}", where=where, remedy="write `name: value`") from None

    @classmethod
    def of_run(cls, settings: dict[str, Any], where: str | None = None) -> RunConfig:
        """The configuration that a run wrote, into its record or run.yaml. Runs before 0.3 held rows out at random."""
        return cls.of({"held_out": "random"} | settings, where)

    @classmethod
    def load(cls, path: str | Path | None, overrides: dict[str, Any]) -> RunConfig:
        """The configuration in a YAML file, with `overrides` by field name in place of its settings."""
        where = None if path is None else str(path)
        return cls.of(cls.read(path) | overrides, where)

    @staticmethod
    def read(path: str | Path | None) -> dict[str, Any]:
        """The unchecked settings in a YAML file; empty without a file."""
        return {} if path is None else _read_yaml(Path(path))

    def to_yaml(self) -> str:
        """The configuration as YAML for `allora train --config`; fields that are None are left out."""
        return yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)

    def command(self) -> str:
        """The command line that repeats this run."""
        words = ["allora", "train"]
        for name, value in self.model_dump(exclude_defaults=True).items():
            words.append("--" + name.replace("_", "-"))
            if value is not True:
                words.append(",".join(value) if isinstance(value, list) else str(value))
        return shlex.join(words)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), remedy="check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not YAML: {error}", where=str(path), remedy="start from `allora train --print-config`") from None
    if not isinstance(content, dict):
        raise ConfigError("not a mapping of settings", where=str(path), remedy="write one `name: value` per line")
    return content


def _explained(error: Any, where: str | None) -> ConfigError:
    name = ".".join(str(part) for part in error["loc"][:1])
    flag = "--" + name.replace("_", "-")
    if error["type"] == "extra_forbidden":
        return ConfigError(f"unknown setting {name!r}", where=where, remedy=did_you_mean(name, RunConfig.model_fields))
    if error["type"] == "missing":
        about = RunConfig.model_fields[name].description
        return ConfigError(f"{name} is not set", where=where, remedy=f"give {flag}: {about}")
    message = error["msg"].removeprefix("Value error, ")
    if not name:  # a contradiction between fields: the message holds the remedy
        what, _, remedy = message.partition(": ")
        return ConfigError(what, where=where, remedy=remedy or None)
    remedy = f"{flag}: {RunConfig.model_fields[name].description}"
    return ConfigError(f"{name}={error['input']!r}: {message[0].lower()}{message[1:]}", where=where, remedy=remedy)
