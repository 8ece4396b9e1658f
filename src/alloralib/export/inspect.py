"""What an adapter on disk is: its settings, and the size of its factors layer by layer.

Reads JSON and safetensors only; the model is not loaded. Given the base model's directory, it also reads its weights, one
tensor at a time, for the ripple bound (`ops/ripple.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..adapters.factors import by_expert
from ..adapters.sidecar import read_sidecar
from ..errors import ModelError, did_you_mean
from ..ops.conv import expand_groups
from ..ops.family import METHODS
from ..ops.ripple import low_rank_norm, ripple_bound
from ..ops.scale import row_norms, scale
from .readers import reasons, summary

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_FACTOR = re.compile(r"base_model\.model\.(?P<module>.*)\.lora_(?:embedding_)?(?P<side>[AB])(?:\.weight)?")


@dataclass(frozen=True)
class Layer:
    """One adapted layer.

    Attributes:
        name: name in the base model.
        r: rank.
        scaling: the constant factor on BA (1 for ALLoRA).
        norm_A, norm_B: Frobenius norms.
        mean_row, max_row: mean and largest row norm of BA.
        smallest_scale: the scale of the largest row; None if the method does not scale rows.
    """

    name: str
    r: int
    scaling: float
    norm_A: float
    norm_B: float
    mean_row: float
    max_row: float
    smallest_scale: float | None


@dataclass(frozen=True)
class Inspection:
    """What an adapter is. `ripple` is None unless the base model was given; `readers` and `loads`: see `export.readers`."""

    path: str
    method: str
    r: int
    eta: float | None
    apply_to: str | None
    base: str | None
    task: str | None
    targets: list[str]
    modules_to_save: list[str]
    parameters: int
    bytes: int
    trained: bool
    readers: dict[str, list[str]]
    loads: str
    layers: list[Layer]
    ripple: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for the picture."""
        return asdict(self)


def read_config(path: Path) -> dict[str, Any]:
    """`adapter_config.json` of a LoRA adapter whose weights are stored as safetensors.

    Raises:
        ModelError: there is no adapter, a file is missing or damaged, the weights are a pickle, or it is not a LoRA adapter.
    """
    where = str(path)
    if not path.is_dir():
        near = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        remedy = did_you_mean(path.name, near) if near else "check the path"
        raise ModelError("no such directory", where=where, remedy=remedy)
    if not (path / CONFIG).is_file():
        hint = "give the directory of a run or of a saved adapter"
        if (path / WEIGHTS).is_file():
            hint = f"put the {CONFIG} of the run back beside {WEIGHTS}"
        elif (path / "config.json").is_file():
            hint = "this is a model; " + hint
        raise ModelError(f"there is no {CONFIG}", where=where, remedy=hint)
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        kind, _ = config["peft_type"], config["r"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"damaged ({type(error).__name__}: {error})", where=str(path / CONFIG), remedy="restore the file"
        ) from None
    if kind not in ("LORA", *(name.upper() for name, method in METHODS.items() if not method.mergeable)):
        raise ModelError(f"a {kind} adapter, and only LoRA adapters can be read", where=where, remedy="use PEFT for it")
    if not (path / WEIGHTS).is_file():
        remedy = "copy the weights of the run beside the configuration"
        if (path / PICKLE).is_file():
            remedy = (
                f"{PICKLE} is a pickle, which can run code when it is read: if you trust it, load it with PEFT and save it "
                "again with save_pretrained"
            )
        raise ModelError(f"there is no {WEIGHTS}", where=where, remedy=remedy)
    return config


def read_weights(path: Path) -> dict[str, Tensor]:
    """The adapter's tensors.

    Raises:
        ModelError: the file is damaged.
    """
    try:
        return load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"damaged ({error})", where=str(path / WEIGHTS), remedy="copy it again from where it was trained"
        ) from None


def inspect_adapter(path: Path, base: Path | None = None) -> Inspection:
    """Read an adapter.

    Args:
        path: directory of a run or of an adapter.
        base: directory of the frozen model, for the ripple bound.

    Raises:
        ModelError: as `read_config`; or a factor is missing, or the adapter does not belong to the base model.
    """
    config, tensors = read_config(path), read_weights(path)
    rule = read_sidecar(path)
    # a relative scale also needs the frozen weight
    eta = None if rule is None or rule.scales_output or rule.apply_to == "relative" else float(rule.eta)
    factors = dict(_factors(path, tensors))
    layers = [_layer(name, A, B, config, eta) for name, (A, B) in factors.items()]
    targets = config.get("target_modules") or []
    return Inspection(
        path=str(path),
        method=_method(config) if rule is None else rule.method,
        r=config["r"],
        eta=None if rule is None else float(rule.eta),
        apply_to=None if rule is None else rule.apply_to,
        base=config.get("base_model_name_or_path"),
        task=config.get("task_type"),
        targets=[targets] if isinstance(targets, str) else sorted(targets),
        modules_to_save=sorted(config.get("modules_to_save") or []),
        parameters=sum(t.numel() for t in tensors.values()),
        bytes=(path / WEIGHTS).stat().st_size,
        trained=any(layer.max_row > 0 for layer in layers),
        readers=reasons(config),
        loads=summary(config),
        layers=layers,
        ripple=None if base is None else _ripple(factors, layers, base),
    )


def _method(config: dict[str, Any]) -> str:
    if config.get("use_dora"):
        return "dora"
    if config.get("use_rslora"):
        return "rslora"
    init = config.get("init_lora_weights")
    return f"lora ({init})" if isinstance(init, str) else "lora"


def _factors(path: Path, tensors: dict[str, Tensor]) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _FACTOR.fullmatch(key)
        if match:
            sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise ModelError("it contains no factor A or B", where=str(path / WEIGHTS), remedy="give an adapter's directory")
    for name in sorted(sides, key=_natural):
        if sides[name].keys() != {"A", "B"}:
            raise ModelError(f"{name} has one factor only", where=str(path / WEIGHTS), remedy="copy the adapter again")
        yield name, (sides[name]["A"], sides[name]["B"])


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key with layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _of_pattern(pattern: dict[str, Any] | None, name: str, default: Any) -> Any:
    """Looks a module up as PEFT does: keys are names, or regular expressions for the end of a name."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _layer(name: str, A: Tensor, B: Tensor, config: dict[str, Any], eta: float | None) -> Layer:
    r = int(_of_pattern(config.get("rank_pattern"), name, config["r"]))
    alpha = _of_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", r))
    norms = row_norms(*_matrices(A, B, r)).flatten()
    largest = norms.max()
    return Layer(
        name=name,
        r=r,
        scaling=float(alpha) / (r**0.5 if config.get("use_rslora") else r),
        norm_A=float(A.float().norm()),
        norm_B=float(B.float().norm()),
        mean_row=float(norms.mean()),
        max_row=float(largest),
        smallest_scale=None if eta is None else float(scale(largest, eta)),
    )


def _matrices(A: Tensor, B: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """A as (..., r, n2) and B as (..., n1, r), for a layer of any type: linear, convolution, stacked experts."""
    a, b = A.flatten(1), B.flatten(1)
    if b.shape[1] < a.shape[0]:  # a convolution with groups
        return a, expand_groups(b, a.shape[0] // b.shape[1])
    return by_expert(a, b, a.shape[0] // r) if a.shape[0] > r else (a, b)


def _ripple(factors: dict[str, tuple[Tensor, Tensor]], layers: list[Layer], base: Path) -> dict[str, float]:
    weights: list[float] = []
    deltas: list[float] = []
    with _weights(base) as read:
        for layer in layers:
            A, B = _matrices(*factors[layer.name], layer.r)
            weight = read(layer.name + ".weight") if A.dim() == 2 else None
            if weight is None:
                raise ModelError(
                    f"it has no matrix {layer.name}.weight, which the ripple bound needs",
                    where=str(base),
                    remedy="give the --model that the adapter was trained on, or leave --model out",
                )
            weights.append(_spectral_norm(weight))
            deltas.append(layer.scaling * low_rank_norm(A, B))
    bound = ripple_bound(weights, deltas)
    return asdict(bound) | {"growth": bound.growth}


def _spectral_norm(weight: Tensor) -> float:
    """From the smaller of the two Gram matrices, in float32, which is accurate enough for the largest eigenvalue."""
    w = weight.flatten(1).float()
    gram = w @ w.mT if w.shape[0] <= w.shape[1] else w.mT @ w
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt())


@contextmanager
def _weights(base: Path) -> Generator[Callable[[str], Tensor | None]]:
    """Reads the tensors in a model's directory by name, one at a time; None for a name that is not there."""
    files = sorted(base.glob("*.safetensors")) if base.is_dir() else []
    if not files:
        raise ModelError("it contains no .safetensors file", where=str(base), remedy="give a model saved as safetensors")
    with ExitStack() as stack:
        try:
            opened: list[Any] = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        except (SafetensorError, OSError) as error:
            raise ModelError(f"damaged ({error})", where=str(base), remedy="copy the model again") from None
        file_of = {key: file for file in opened for key in file.keys()}  # noqa: SIM118 (not a mapping)

        def read(name: str) -> Tensor | None:
            # a model saved without its head has no prefix ("bert.") in its names
            key = next((k for k in (name, name.partition(".")[2]) if k in file_of), None)
            return None if key is None else file_of[key].get_tensor(key)

        yield read
