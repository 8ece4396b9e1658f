"""Before the first step: what the run will train on, what it will cost, and the mistakes that would waste it.

Foreign private API used here: the Trainer's `_prepare_inputs`.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from ..adapters.targets import adapted_modules
from ..errors import TrainingError
from . import compiling
from .batches import BucketBatches, lengths_of
from .config import RunConfig
from .packing import without_padding
from .state import random_state, set_random

IGNORED = -100
_SHOWN_TOKENS = 400
Uncut = Callable[[list[int]], list[int]]


def preflight(config: RunConfig, trainer: Any, processor: Any, steps: int, uncut: Uncut) -> dict[str, Any]:
    """Look at the data and the model of a run, and measure one step of it. Neither is changed.

    Args:
        trainer: as `make_trainer` built it, before `train()`.
        processor: tokenizer or image processor.
        steps: optimizer steps of the run.
        uncut: the number of tokens that training rows have before they are cut, by row number.

    Returns:
        what goes into the record and `report` prints: `example`, `data`, `adapter`, `cost`, `warnings`.

    Raises:
        TrainingError: a check that would make the run worthless.
    """
    dataset, found = trainer.train_dataset, {}
    warnings: list[str] = []
    if config.is_language:
        found["example"] = _marked(dataset[0], processor)
        _check_answers(dataset, processor, warnings)
    elif config.task == "classification":
        found["example"] = processor.decode(dataset[0]["input_ids"]) + f"  ->  {dataset[0]['labels']}"
    if not config.is_language:
        _check_labels(dataset, trainer.model.config.num_labels)
    found["data"] = _data(config, trainer)
    full = [i for i, length in enumerate(lengths_of(dataset)) if length >= config.max_length]
    if full:
        lengths = uncut([dataset[i]["row"] for i in full])
        lost = sum(max(0, length - config.max_length) for length in lengths)
        found["data"]["truncated_rows"] = sum(length > config.max_length for length in lengths)
        found["data"]["truncated_share"] = lost / (found["data"]["tokens"] + lost)
    if found["data"].get("truncated_rows"):
        warnings.append(
            f"{found['data']['truncated_rows']:,} rows are cut at {config.max_length} tokens, which loses "
            f"{found['data']['truncated_share']:.1%} of all tokens: --max-length"
        )
    _check_tied(trainer.model, warnings)
    cost = _measure(config, trainer, steps, warnings)
    found["adapter"] = _adapter(trainer.model)
    return found | {"cost": cost, "warnings": warnings}


def report(config: RunConfig, found: dict[str, Any]) -> str:
    """The findings for a person to read."""
    data, adapter, cost = found["data"], found["adapter"], found["cost"]
    settings = config.model_dump(exclude_defaults=True, exclude={"output_dir", "overwrite"})
    lines = ["preflight", "  settings       " + ", ".join(f"{name}={value}" for name, value in settings.items())]
    if "example" in found:
        lines.append(f"  first row      {found['example']}")
        if config.is_language:
            lines.append("                 (what stands between ⟦ and ⟧ is learnt)")
    if "tokens" in data:
        lines.append(
            f"  an epoch       {data['rows']:,} rows, {data['tokens']:,} tokens"
            + (f", {data['trained_tokens']:,} of them learnt" if "trained_tokens" in data else "")
            + f"; padding adds {data['padding_share']:.1%} at most"  # before packing
        )
    else:
        lines.append(f"  an epoch       {data['rows']:,} rows")
    lines.append(
        f"  adapter        {adapter['parameters']:,} trained parameters ({adapter['share']:.2%} of the model) in "
        f"{adapter['modules']} modules: {', '.join(adapter['kinds'])}"
    )
    lines.append(
        f"  cost           about {_duration(cost['seconds'])} for {cost['steps']:,} steps "
        f"({cost['step_seconds']:.2f} s each), {cost['peak_gib']:.1f} GiB at the longest batch"
    )
    if config.compile:
        lines.append(f"  compiling      {compiling.describe(cost)}")
    lines += [f"  warning        {text}" for text in found["warnings"]]
    return "\n".join(lines)


def _marked(row: dict[str, Any], tokenizer: Any) -> str:
    """The text of a row with its trained tokens between brackets."""
    ids, labels = row["input_ids"][:_SHOWN_TOKENS], row["labels"][:_SHOWN_TOKENS]
    parts, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == IGNORED) != (labels[start] == IGNORED):
            text = tokenizer.decode(ids[start:end])
            parts.append(text if labels[start] == IGNORED else f"⟦{text}⟧")
            start = end
    return repr("".join(parts))[1:-1] + (" ..." if len(row["input_ids"]) > _SHOWN_TOKENS else "")


def _check_answers(dataset: Any, tokenizer: Any, warnings: list[str]) -> None:
    labels = dataset["labels"]
    learnt = [[t for t in row if t != IGNORED] for row in labels]
    if not any(learnt):
        raise TrainingError(
            "no token of any row is trained", where="preflight", remedy="check the completion column, or raise --max-length"
        )
    stops = {tokenizer.eos_token_id, *_turn_ends(tokenizer)} - {None}
    ends = sum(bool(stops & set(row)) for row in learnt)
    if ends == 0:
        warnings.append(
            "the stop token is never learnt: the tuned model will not know where to end "
            "(an answer that is cut at max_length, or a chat template without an end of turn)"
        )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id and ends < len(learnt):
        warnings.append(
            f"padding and end of text are the same token {tokenizer.pad_token!r}, and "
            f"{len(learnt) - ends:,} rows end without one"
        )


def _turn_ends(tokenizer: Any) -> set[int]:
    named = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")]
    return {i for i in named if i is not None and i != tokenizer.unk_token_id}


def _check_labels(dataset: Any, classes: int) -> None:
    outside = sorted({label for label in dataset["labels"] if not 0 <= label < classes})
    if outside:
        raise TrainingError(
            f"labels {outside[:5]} are outside 0 ... {classes - 1}, the model's classes",
            where="preflight",
            remedy="check the label column",
        )


def _data(config: RunConfig, trainer: Any) -> dict[str, Any]:
    dataset = trainer.train_dataset
    if "input_ids" not in dataset.column_names:
        return {"rows": len(dataset)}
    lengths = lengths_of(dataset)
    batches = BucketBatches(lengths, config.batch_size, config.data_seed).global_batches()
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)
    tokens = sum(lengths)
    learnt = {}
    if config.is_language:
        learnt = {"trained_tokens": sum(label != IGNORED for row in dataset["labels"] for label in row)}
    return {
        "rows": len(dataset),
        "tokens": tokens,
        **learnt,
        "padded_tokens": padded,
        "padding_share": padded / tokens - 1,
        "longest": max(lengths),
        "truncated_rows": 0,
        "truncated_share": 0.0,
    }


def _check_tied(model: Any, warnings: list[str]) -> None:
    base = model.get_base_model()
    inputs, outputs = base.get_input_embeddings(), getattr(base, "get_output_embeddings", lambda: None)()
    if inputs is None or outputs is None or not getattr(base.config, "tie_word_embeddings", False):
        return
    names = {name for name, module in base.named_modules() if module is inputs or module is outputs}
    touched = names & set(model.base_model.targeted_module_names)
    if touched:
        warnings.append(
            f"{', '.join(sorted(touched))} shares its weight with the other end of the model: the adapter changes one end "
            "only, and merging it unties them"
        )


def _adapter(model: Any) -> dict[str, Any]:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    modules = adapted_modules(model)
    return {
        "parameters": trained,
        "share": trained / sum(p.numel() for p in model.parameters()),
        "modules": len(modules),
        "kinds": sorted({name.rpartition(".")[2] for name in modules}),
    }


def _measure(config: RunConfig, trainer: Any, steps: int, warnings: list[str]) -> dict[str, Any]:
    """Forward and backward at the longest batch and at a middling one; gradients are looked at and thrown away."""
    dataset, model = trainer.train_dataset, trainer.model
    has_tokens = "input_ids" in dataset.column_names
    lengths = lengths_of(dataset)
    by_length = sorted(range(len(dataset)), key=lambda i: lengths[i])
    middle = max(0, len(by_length) // 2 - config.batch_size // 2)
    batches = [by_length[-config.batch_size :], by_length[middle : middle + config.batch_size]]
    kept, training = random_state(), model.training
    as_trained = {"fused_lm_head": True} if config.is_language else {}  # as TRL's trainer calls it

    def timed(rows: list[int]) -> float:
        batch = trainer.data_collator([dataset[i] for i in rows])
        del batch["row"]
        start = time.perf_counter()
        inputs = trainer._prepare_inputs(batch)
        if not config.is_language:  # TRL's trainer comes to it within the model
            inputs = without_padding(model.get_base_model(), inputs, call=model)
        loss = model(**inputs, **as_trained).loss
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} before the first step", where="preflight",
                remedy="use --dtype float32, and look at the longest rows",
            )  # fmt: skip
        loss.backward()
        return time.perf_counter() - start

    compiled: dict[str, float] = {}
    model.train()
    try:
        with compiling.eagerly(config.compile):
            seconds = [timed(rows) for rows in batches]
        _check_gradients(model, warnings)
        if config.compile:
            planned = BucketBatches(lengths, config.batch_size, config.data_seed).global_batches()
            compiled = compiling.measure(timed, compiling.programs(planned, lengths), batches[1])
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        set_random(kept)
    # passes of the middling batch that are as much work as a step
    passes = float(config.gradient_accumulation)
    if has_tokens:
        passes *= statistics.fmean(lengths) * config.batch_size / sum(lengths[i] for i in batches[1])
    step = passes * compiled.get("compiled_seconds", seconds[1])
    cost = {"steps": steps, "step_seconds": step, "seconds": step * steps, "peak_gib": _peak_gib()}
    if not compiled:
        return cost
    eager, taken = passes * compiled["eager_seconds"], compiled["compile_seconds"]
    pays = compiling.break_even(taken, eager - step)
    if pays is None or pays > steps:
        warnings.append("compiling does not pay in this run: leave out --compile, unless you want to have tried it")
    cost["seconds"] += taken
    return cost | {"compile_seconds": taken, "eager_step_seconds": eager, "break_even_steps": pays}


def _check_gradients(model: Any, warnings: list[str]) -> None:
    """B starts at zero, so A's first gradient is zero by right; one of the two must not be."""
    reached: dict[str, bool] = {}
    for name, p in model.named_parameters():
        if p.requires_grad and "lora_" in name:
            layer = name.split(".lora_")[0]
            reached[layer] = reached.get(layer, False) or (p.grad is not None and bool(p.grad.abs().sum() > 0))
    idle = [layer for layer, moved in reached.items() if not moved]
    if not reached or len(idle) == len(reached):
        raise TrainingError(
            "no gradient reaches the adapter", where="preflight", remedy="check --target-modules and --gradient-checkpointing"
        )
    if idle:  # experts that no token was sent to, or modules that the task does not use
        warnings.append(f"no gradient reached {len(idle)} of {len(reached)} adapted modules, the first {idle[0]}")


def _peak_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _duration(seconds: float) -> str:
    """Seconds for a person to read.

    >>> _duration(42.3), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
