"""Checks and measurements before the first step: the data, the cost of a step, and mistakes that would waste the run."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import psutil
import torch

from ..adapters.targets import adapted_modules, embeddings_of, whole_modules
from ..data.chat import IGNORED, special_tokens_in_text
from ..data.examples import build_examples
from ..data.forms import Kind
from ..data.stops import stops
from ..errors import TrainingError
from . import compiling, head
from .batches import BucketBatches, lengths_of
from .config import RunConfig
from .limits import check_pixels
from .prepare import Run, tables_of
from .state import random_state, set_random
from .suitable import check_causal, check_ends
from .trainer import RunTrainer

_SHOWN_TOKENS = 400


def preflight(trainer: RunTrainer) -> dict[str, Any]:
    """Check the data and the model of a run, and measure one step. Neither is changed.

    Returns:
        the findings: `example`, `data`, `adapter`, `cost` and `warnings`. `report` prints them; the record keeps them.

    Raises:
        TrainingError: a mistake that would make the run worthless.
    """
    run, found = trainer.run, {}
    rows, config, warnings = run.examples["train"], run.config, list(run.notes)
    if config.is_language:
        with compiling.eagerly(config.compile):
            check_causal(trainer.model, config.model)
        found["example"] = _marked(rows[0], run.processor)
        _check_trained_tokens(rows, run.processor, warnings, config.kind)
        if config.columns.messages is not None:
            warnings += special_tokens_in_text(run.parts.train, config.columns.messages, run.processor)
    else:
        if config.task == "classification":
            for part, table in tables_of(run.parts).items():
                check_ends(run.model.config, run.examples[part], table.where)
            found["example"] = run.processor.decode(rows[0]["input_ids"]) + f"  ->  {rows[0]['labels']}"
        _check_labels(rows, run.model.config.num_labels)
    if config.task == "image-classification":
        check_pixels(trainer.model, rows, run.parts.train.where)
    warnings += [*run.parts.notes, *_left_out(run.parts.removed)]
    found["data"] = _describe_data(run, warnings)
    _check_tied_weights(run.model, warnings)
    found["cost"] = _measure(trainer, warnings)
    found["adapter"] = _describe_adapter(run.model)
    _check_new_weights(run, found["adapter"]["whole"], warnings)
    return found | {"warnings": warnings}


def report(config: RunConfig, found: dict[str, Any]) -> str:
    """The findings of `preflight`, and of `head.start_head`, as text."""
    data, adapter, cost = found["data"], found["adapter"], found["cost"]
    settings = config.model_dump(exclude_defaults=True, exclude={"output_dir", "overwrite"})
    lines = ["preflight", "  settings       " + ", ".join(f"{name}={value}" for name, value in settings.items())]
    if "example" in found:
        lines.append(f"  first row      {found['example']}")
        if config.is_language:
            lines.append("                 (trained is what stands between ⟦ and ⟧)")
    epoch = f"{data['rows']:,} rows"
    if "tokens" in data:
        trained = f", {data['trained_tokens']:,} of them trained" if "trained_tokens" in data else ""
        epoch += f", {data['tokens']:,} tokens{trained}; padding adds at most {data['padding_share']:.1%}"  # before packing
    lines.append(f"  an epoch       {epoch}")
    lines += [
        f"  adapter        {adapter['parameters']:,} trained parameters ({adapter['share']:.2%} of the model) in "
        f"{adapter['modules']} modules: {', '.join(adapter['kinds'])}"
        + (f"; trained whole: {', '.join(adapter['whole'])}" if adapter["whole"] else ""),
        f"  cost           about {_duration(cost['seconds'])} for {cost['steps']:,} steps "
        f"({cost['step_seconds']:.2f} s each), {cost['peak_gib']:.1f} GiB at the longest batch",
    ]
    if "head" in found:
        lines.append(f"  head           {head.describe(found['head'])}")
    if config.compile:
        lines.append(f"  compiling      {compiling.describe(cost)}")
    lines += [f"  warning        {text}" for text in found["warnings"]]
    return "\n".join(lines)


def _marked(row: dict[str, Any], tokenizer: Any) -> str:
    """The text of a row with its trained tokens in brackets."""
    ids, labels = row["input_ids"][:_SHOWN_TOKENS], row["labels"][:_SHOWN_TOKENS]
    parts, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == IGNORED) != (labels[start] == IGNORED):
            text = tokenizer.decode(ids[start:end])
            parts.append(text if labels[start] == IGNORED else f"⟦{text}⟧")
            start = end
    return repr("".join(parts))[1:-1] + (" ..." if len(row["input_ids"]) > _SHOWN_TOKENS else "")


def _check_trained_tokens(rows: Any, tokenizer: Any, warnings: list[str], kind: Kind) -> None:
    trained = [[label for label in labels if label != IGNORED] for labels in rows["labels"]]
    if not any(trained):
        remedy = "check the completion column, or raise --max-length"
        raise TrainingError("no token of any row is trained", where="preflight", remedy=remedy)
    stop = stops(tokenizer, kind)
    ends = sum(bool(set(stop.tokens) & set(labels)) for labels in trained)
    if stop.text:
        warnings.append(
            f"the chat template ends an answer with {stop.text!r}, for which there is no single token: other tools must be "
            "told to stop at this text"
        )
    elif ends == 0:
        warnings.append(
            "the stop token is never trained, so the tuned model will not know where to end "
            "(all answers are cut at max_length, or the chat template has no end of turn)"
        )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id and ends < len(trained):
        warnings.append(
            f"padding and end of text are the same token {tokenizer.pad_token!r}, and "
            f"{len(trained) - ends:,} rows end without it"
        )


def _check_labels(rows: Any, classes: int) -> None:
    outside = sorted({label for label in rows["labels"] if not 0 <= label < classes})
    if outside:
        what = f"labels {outside[:5]} are outside 0 ... {classes - 1}, the model's classes"
        raise TrainingError(what, where="preflight", remedy="check the label column")


_LEFT_OUT = {  # what `Parts.removed` counts; repeated rows are no reason for a warning
    "conflicts": "training rows that have an equal example with another label",
    "train/test": "training rows that are also test rows",
    "train/validation": "training rows that are also validation rows",
    "validation/test": "validation rows that are also test rows",
    "unlabelled": "rows without a label",
}


def _left_out(removed: dict[str, int]) -> list[str]:
    """How many rows are not used, and why; nothing if all are."""
    found = [f"{removed[name]:,} {what}" for name, what in _LEFT_OUT.items() if removed[name]]
    return [f"left out: {', '.join(found)}"] if found else []


def _describe_data(run: Run, warnings: list[str]) -> dict[str, Any]:
    config, rows = run.config, run.examples["train"]
    if "input_ids" not in rows.column_names:
        return {"rows": len(rows)}
    lengths = lengths_of(rows)
    batches = BucketBatches(lengths, config.batch_size, config.data_seed).global_batches()
    padded, tokens = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches), sum(lengths)
    found = {"rows": len(rows), "tokens": tokens}
    if config.is_language:
        found["trained_tokens"] = sum(label != IGNORED for labels in rows["labels"] for label in labels)
    found |= {"padded_tokens": padded, "padding_share": padded / tokens - 1, "longest": max(lengths)}
    found |= {"truncated_rows": 0, "truncated_share": 0.0}
    full = [row for row, length in enumerate(lengths) if length >= run.max_length]
    if full:  # tokenize these again to see which were cut
        table = run.parts.train.take(full)
        whole = lengths_of(build_examples(config.kind, table, config.columns, processor=run.processor, names=run.labels))
        lost = sum(max(0, length - run.max_length) for length in whole)
        found["truncated_rows"] = sum(length > run.max_length for length in whole)
        found["truncated_share"] = lost / (tokens + lost)
    if found["truncated_rows"]:
        full = run.limits is not None and run.limits.positions == run.max_length
        warnings.append(
            f"{found['truncated_rows']:,} rows are cut at {run.max_length} tokens, which loses "
            f"{found['truncated_share']:.1%} of all tokens: " + ("the model can take no more" if full else "--max-length")
        )
    if run.limits is not None and run.limits.context is not None and max(lengths) > run.limits.context:
        warnings.append(
            f"the longest row has {max(lengths)} tokens, and the model was made for {run.limits.context}: it can take more, "
            "but may do worse there (--max-length)"
        )
    return found


def _check_tied_weights(model: Any, warnings: list[str]) -> None:
    base = model.get_base_model()
    inputs, outputs = embeddings_of(base)
    if inputs is None or outputs is None or not getattr(base.config, "tie_word_embeddings", False):
        return
    names = {name for name, module in base.named_modules() if module is inputs or module is outputs}
    adapted = names & set(model.base_model.targeted_module_names)
    if adapted:
        warnings.append(
            f"{', '.join(sorted(adapted))} shares its weight between the input and the output of the model: the adapter "
            "changes one of the two only. `allora merge` writes two weights then; PEFT's own merge_and_unload changes both"
        )


def _check_new_weights(run: Run, whole: list[str], warnings: list[str]) -> None:
    """Say which layers below the head start from random values."""
    body = run.model.get_base_model().base_model_prefix + "."
    new = [name for name in whole if name.startswith(body) and any(n.startswith(name + ".") for n in run.new)]
    if new:
        warnings.append(f"the model's file has no {', '.join(new)}: trained whole, from random values")


def _describe_adapter(model: Any) -> dict[str, Any]:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    modules = adapted_modules(model)
    return {
        "parameters": trained,
        "share": trained / sum(p.numel() for p in model.parameters()),
        "modules": len(modules),
        "kinds": sorted({name.rpartition(".")[2] for name in modules}),
        "whole": whole_modules(model),
    }


def _measure(trainer: RunTrainer, warnings: list[str]) -> dict[str, Any]:
    """Time a forward and backward pass at the longest batch and at one of median length; the gradients are discarded."""
    run, model, config = trainer.run, trainer.run.model, trainer.run.config
    lengths, steps = lengths_of(run.examples["train"]), trainer.planned_steps()
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    middle = max(0, len(by_length) // 2 - config.batch_size // 2)
    batches = [by_length[-config.batch_size :], by_length[middle : middle + config.batch_size]]
    kept, was_training = random_state(), model.training

    def timed(rows: list[int]) -> float:
        start = time.perf_counter()
        loss = trainer.loss_of(rows)
        if not torch.isfinite(loss):
            remedy = "use --dtype float32, and look at the longest rows"
            raise TrainingError(f"the loss is {loss.item()} before the first step", where="preflight", remedy=remedy)
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
        model.train(was_training)
        set_random(kept)
    batches_of_epoch = -(-len(lengths) // (config.batch_size * trainer.args.world_size))
    passes = batches_of_epoch / -(-batches_of_epoch // config.gradient_accumulation)  # the last step of an epoch may have fewer
    if "input_ids" in run.examples["train"].column_names:  # passes of the median batch that are as much work as a step
        passes *= statistics.fmean(lengths) * config.batch_size / sum(lengths[i] for i in batches[1])
    step = passes * compiled.get("compiled_seconds", seconds[1])
    cost = {"steps": steps, "step_seconds": step, "seconds": step * steps, "peak_gib": _peak_gib()}
    if not compiled:
        return cost
    eager, taken = passes * compiled["eager_seconds"], compiled["compile_seconds"]
    break_even = compiling.break_even(taken, eager - step)
    if break_even is None or break_even > steps:
        warnings.append("compiling does not pay in this run: leave out --compile")
    cost["seconds"] += taken
    return cost | {"compile_seconds": taken, "eager_step_seconds": eager, "break_even_steps": break_even}


def _check_gradients(model: Any, warnings: list[str]) -> None:
    """Check that a gradient reaches A or B of every adapted module. (While B is zero, as at the start, A's gradient is too.)"""
    reached: dict[str, bool] = {}
    for name, p in model.named_parameters():
        if p.requires_grad and "lora_" in name:
            layer = name.split(".lora_")[0]
            reached[layer] = reached.get(layer, False) or (p.grad is not None and bool(p.grad.abs().sum() > 0))
    unreached = [layer for layer, moved in reached.items() if not moved]
    if not reached or len(unreached) == len(reached):
        remedy = "check --target-modules and --gradient-checkpointing"
        raise TrainingError("no gradient reaches the adapter", where="preflight", remedy=remedy)
    if unreached:  # experts that got no token, or modules that the task does not use
        warnings.append(f"no gradient reached {len(unreached)} of {len(reached)} adapted modules, the first {unreached[0]}")


def _peak_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        memory: Any = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _duration(seconds: float) -> str:
    """Seconds as text.

    >>> _duration(42.3), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
