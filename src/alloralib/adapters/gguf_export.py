"""A LoRA adapter as a GGUF file, made by llama.cpp's own converter and proven by reading it back.

llama.cpp runs W + (alpha/rank) B A with one alpha for the whole file and the rank of each tensor, so an adapter with
several ranks, or another factor than alpha/r, is first rewritten: B_l times s_l r_l / r, with s_l the factor PEFT uses.
Its converter also reorders the rows of W_q and W_k of Llama models (`LlamaModel.permute`: rotary halves become pairs),
and so those of B; `unpermute` takes that back.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ConfigError, MergeError
from .export import Batch, Load, Proof, Trained, check_mergeable, load_stock, logits, staged

CONVERTER = "convert_lora_to_gguf.py"
CONVERTER_VARIABLE = "ALLORA_LORA_TO_GGUF"
_PERMUTED = {"llama": True, "qwen2": False, "qwen3": False, "gemma": False, "gemma2": False, "gemma3": False}
"""The architectures (GGUF's names) whose tensors can be read back, and whether rows of W_q and W_k are reordered."""
_ROUND_OFF = {"F32": 1e-6, "F16": 1e-3, "BF16": 8e-3}
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def find_converter(given: str | None = None) -> Path:
    """llama.cpp's converter: the path that is given, $ALLORA_LORA_TO_GGUF, or on PATH.

    Raises:
        ConfigError: it is nowhere.
    """
    named = given or os.environ.get(CONVERTER_VARIABLE)
    found = named or shutil.which(CONVERTER)
    if found is None or not Path(found).is_file():
        raise ConfigError(
            f"llama.cpp's {CONVERTER} is not there" if found is None else "no such file",
            where=found,
            remedy=f"clone llama.cpp and give --converter PATH/{CONVERTER} (or set {CONVERTER_VARIABLE})",
        )
    return Path(found)


def export_gguf(adapter: Path, output: Path, *, load_base: Load, inputs: Sequence[Batch], base: Path, converter: Path) -> Proof:
    """Write a GGUF adapter (float32) for llama.cpp.

    Args:
        adapter: a saved adapter of a causal language model.
        output: the file to write.
        load_base, inputs: as in `export.export_merged`.
        base: the directory of the frozen model; the converter reads its config.json.
        converter: see `find_converter`.

    Raises:
        MergeError: not mergeable, nothing that GGUF has a place for, or the file does not hold the adapter.
        ConfigError: the package gguf is missing, or the converter failed.
    """
    config = check_mergeable(adapter)
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("reading the GGUF file back needs the package gguf", remedy="pip install alloralib[gguf]")
    for setting in ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias"):
        if getattr(config, setting):
            raise MergeError(
                f"a GGUF adapter has no place for {setting}", where=str(adapter), remedy="use --format merged instead"
            )
    with staged(output) as path, tempfile.TemporaryDirectory() as scratch:
        trained = Trained.of(adapter, load_base, inputs)
        model = load_stock(load_base(), adapter)
        with_one_alpha(model, config, adapter, Path(scratch))
        _convert(converter, base, Path(scratch), path)
        dtype = _read_back(path, model)
        return trained.prove(logits(model, inputs), str(output), dtype)


def with_one_alpha(model: PeftModel, config: LoraConfig, adapter: Path, target: Path) -> None:
    """Write the adapter with alpha = r, B carrying what its own factor differs from alpha/r_l by."""
    content = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    content |= {"lora_alpha": config.r, "alpha_pattern": {}, "use_rslora": False}
    (target / "adapter_config.json").write_text(json.dumps(content), encoding="utf-8")
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, layer in lora_layers(model).items():
        key, B = next((k, t) for k, t in tensors.items() if re.search(rf"\.{re.escape(name)}\.lora_(embedding_)?B", k))
        factor = layer.scaling["default"] * B.shape[1] / config.r
        if factor != 1:
            tensors[key] = (B.float() * factor).to(B.dtype).contiguous()
    save_file(tensors, target / "adapter_model.safetensors")


def lora_layers(model: PeftModel) -> dict[str, Any]:
    """The adapted layers by their name in the base model."""
    base: Any = model.get_base_model()
    return {name: module for name, module in base.named_modules() if hasattr(module, "lora_A") and module.scaling}


def _convert(converter: Path, base: Path, adapter: Path, output: Path) -> None:
    words = [sys.executable, str(converter), "--outfile", str(output), "--outtype", "f32", "--base", str(base), str(adapter)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not output.is_file():
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ConfigError(
            "the converter failed: " + " / ".join(last),
            where=str(converter),
            remedy="nothing was written; update llama.cpp, or use --format merged",
        )


def _read_back(path: Path, model: PeftModel) -> torch.dtype:
    """Compare every A and B of the file with the adapter's, and put what was read in their place.

    Returns:
        the coarsest dtype in the file.

    Raises:
        MergeError: a tensor is missing, one too many, or not the adapter's.
    """
    from gguf import GGUFReader

    reader: Any = GGUFReader(path)
    kind, alpha = _value(reader, "adapter.type"), _value(reader, "adapter.lora.alpha")
    architecture = _value(reader, "general.architecture")
    if kind != "lora" or alpha is None:
        raise _wrong(path, f"it is no LoRA adapter (adapter.type {kind!r}, adapter.lora.alpha {alpha!r})")
    if architecture not in _PERMUTED:
        raise MergeError(
            f"how llama.cpp lays out {architecture!r} is not known here, so the file cannot be proven",
            where=str(path.name),
            remedy="use --format merged; known: " + ", ".join(sorted(_PERMUTED)),
        )
    names = _names(architecture, model)
    held = {tensor.name: tensor for tensor in reader.tensors}
    wanted = {f"{name}.lora_{ab}" for name in names.values() for ab in "ab"}
    if held.keys() != wanted:
        odd = ", ".join(sorted(held.keys() ^ wanted)[:4])
        raise _wrong(path, f"{len(held)} tensors where the adapter has {len(wanted)}; the odd ones: {odd}")
    for module, layer in lora_layers(model).items():
        a, b = held[names[module] + ".lora_a"], held[names[module] + ".lora_b"]
        A, B = _parameters(layer)
        read_a, read_b = _tensor(a), _tensor(b)
        if names[module].startswith("token_embd"):
            read_a = read_a.mT
        if _PERMUTED[architecture] and module.endswith(("q_proj", "k_proj")):
            read_b = unpermute(read_b, _heads(model, module))
        # llama.cpp multiplies B A by alpha / rank, PEFT by `scaling`: B is compared, and taken over, in PEFT's terms
        read_b = read_b * (alpha / B.shape[1] / layer.scaling["default"])
        for which, read, own, kept in (("A", read_a, A, a), ("B", read_b, B, b)):
            _same(read, own, f"{module}, {which}", _ROUND_OFF[kept.tensor_type.name], path)
            own.data.copy_(read)
    return _DTYPES[max((t.tensor_type.name for t in reader.tensors), key=lambda name: _ROUND_OFF[name])]


def _same(read: Tensor, own: Tensor, name: str, round_off: float, path: Path) -> None:
    if read.shape != own.shape:
        raise _wrong(path, f"{name} has shape {tuple(read.shape)} and not {tuple(own.shape)}")
    off = float((read - own.float()).abs().max())
    if not off <= round_off * max(float(own.abs().max()), 1e-30):
        raise _wrong(path, f"{name} is off by up to {off:.3g}")


def _wrong(path: Path, what: str) -> MergeError:
    return MergeError(
        f"the converted file does not hold the adapter: {what}",
        where=path.name,
        remedy="nothing was written; the converter and this model do not fit together: use --format merged",
    )


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _tensor(tensor: Any) -> Tensor:
    """The values as float32, (rows, columns). GGUF keeps shapes from the fastest dimension on."""
    if tensor.tensor_type.name not in _ROUND_OFF:
        raise MergeError(f"{tensor.name} is {tensor.tensor_type.name}, and only unquantized adapters can be proven")
    from gguf.quants import dequantize

    values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    return values.reshape([int(n) for n in reversed(tensor.shape)]).float()


def _names(architecture: str, model: PeftModel) -> dict[str, str]:
    """The adapted layers' names in GGUF."""
    import gguf

    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(arch, int(_text_config(model).num_hidden_layers))
    names: dict[str, str] = {}
    for module in lora_layers(model):
        name = table.get_name(module + ".weight", try_suffixes=(".weight",))
        if name is None:
            raise MergeError(f"GGUF has no name for {module}", remedy="use --format merged")
        names[module] = name
    return names


def _text_config(model: PeftModel) -> Any:
    return model.get_base_model().config.get_text_config()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def _heads(model: PeftModel, module: str) -> int:
    config = _text_config(model)
    return int(config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads)


def _parameters(layer: Any) -> tuple[Tensor, Tensor]:
    if "default" in layer.lora_embedding_A:
        return layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Take back llama.cpp's order of the rows of W_q and W_k: (heads, half, 2, ...) to (heads, 2, half, ...)."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, rows // 2, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
