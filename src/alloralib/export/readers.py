"""Which other programs load an adapter as it is, and why not: what their own loaders check, as a table.

Read from PEFT 0.15 to 0.21, vLLM 0.33 and the `convert_lora_to_gguf.py` of llama.cpp; docs/tools.md shows the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]

PEFT, VLLM, LLAMA_CPP = "PEFT", "vLLM", "llama.cpp"
OLDEST_PEFT = "0.15"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's `--max-lora-rank`; its default is 16."""
_NEWER_PEFT = {
    "use_qalora": "0.16", "target_parameters": "0.17", "alora_invocation_tokens": "0.18", "arrow_config": "0.18",
    "ensure_weight_tying": "0.18", "lora_ga_config": "0.19", "use_bdlora": "0.19", "velora_config": "0.20",
    "monteclora_config": "0.20", "kasa_config": "0.21",
}  # fmt: skip
"""Settings that PEFT 0.15 does not have (it drops them with a warning), and the first version that has them."""
_ONLY_START = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of `init_lora_weights` that only choose where A and B start. The others change the base's weights."""


def changes_base(config: Config) -> bool:
    """Whether the adapter was trained beside changed weights of the base (PiSSA, OLoRA, ...), which loading recomputes."""
    init = config.get("init_lora_weights", True)
    return isinstance(init, str) and init not in _ONLY_START


def _set(*keys: str) -> Callable[[Config], bool]:
    return lambda config: any(config.get(key) for key in keys)


def _other_modules(config: Config) -> bool:
    return not {"classifier", "score"}.issuperset(config.get("modules_to_save") or ())


_RULES: dict[str, list[tuple[Callable[[Config], bool], str]]] = {
    PEFT: [(lambda c: oldest_peft(c) != OLDEST_PEFT, "it has settings of a newer version")],
    VLLM: [
        (_set("use_dora"), "DoRA"),
        (_other_modules, "fully trained modules (modules_to_save) other than classifier and score"),
        (changes_base, "it changes the base (init_lora_weights), until --format peft makes it plain LoRA"),
        (lambda c: largest_rank(c) > VLLM_RANKS[-1], f"a rank above {VLLM_RANKS[-1]}"),
        (lambda c: c.get("bias", "none") != "none" or bool(c.get("lora_bias")), "trained biases"),
        (_set("trainable_token_indices"), "single trained tokens (trainable_token_indices)"),
        (_set("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"), "another LoRA variant"),
    ],
    LLAMA_CPP: [
        (_set("use_dora"), "DoRA"),
        (lambda c: c.get("task_type") not in (None, "CAUSAL_LM"), "a classifier's head (task_type)"),
        (_set("modules_to_save"), "fully trained modules (modules_to_save)"),
        (lambda c: c.get("bias", "none") != "none" or bool(c.get("lora_bias")), "trained biases (bias, lora_bias)"),
        (_set("trainable_token_indices"), "single trained tokens (trainable_token_indices)"),
        (_set("target_parameters"), "stacked experts (target_parameters)"),
        (_set("layer_replication", "use_bdlora", "use_qalora"), "another LoRA variant"),
    ],
}


def oldest_peft(config: Config) -> str:
    """The first version of PEFT, from 0.15, that has all settings of the adapter.

    >>> oldest_peft({"r": 8, "target_parameters": ["experts.down_proj"]})
    '0.17'
    """
    needed = {version for key, version in _NEWER_PEFT.items() if config.get(key)}
    if config.get("init_lora_weights") == "orthogonal":
        needed.add("0.16")
    return max({OLDEST_PEFT} | needed)


def largest_rank(config: Config) -> int:
    """The largest rank of any layer."""
    return max(config["r"], *(config.get("rank_pattern") or {}).values(), 0)


def reasons(config: Config) -> dict[str, list[str]]:
    """Why a program does not load the adapter; an empty list where it does.

    Args:
        config: the content of `adapter_config.json`.

    Returns:
        the reasons of PEFT (of version 0.15), vLLM, and llama.cpp (through `allora export --format gguf`).

    >>> reasons({"peft_type": "LORA", "r": 8, "use_dora": True})
    {'PEFT': [], 'vLLM': ['DoRA'], 'llama.cpp': ['DoRA']}
    """
    if config.get("peft_type") != "LORA":
        return {reader: [f"{config.get('peft_type')} is no LoRA"] for reader in _RULES}
    return {reader: [why for applies, why in rules if applies(config)] for reader, rules in _RULES.items()}


def summary(config: Config) -> str:
    """`reasons` in a line, with what each program needs.

    >>> summary({"peft_type": "LORA", "r": 24})
    'loads in: PEFT 0.15 and newer; vLLM with --max-lora-rank 32; llama.cpp after --format gguf'
    """
    found = reasons(config)
    if config.get("peft_type") == "LORA":
        found[PEFT] = []
    rank = next((n for n in VLLM_RANKS if n >= largest_rank(config)), None)
    how = {
        PEFT: f"PEFT {oldest_peft(config)} and newer",
        VLLM: f"vLLM with --max-lora-rank {rank}",
        LLAMA_CPP: "llama.cpp after --format gguf",
    }
    loads = "; ".join(text for reader, text in how.items() if not found[reader]) or "alloralib alone"
    return "; ".join([f"loads in: {loads}", *(f"not in {reader}: {', '.join(why)}" for reader, why in found.items() if why)])
