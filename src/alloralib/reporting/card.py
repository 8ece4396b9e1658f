"""The model card of an adapter, from the record of its run."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from ..files import write_text
from ..records import MODEL_CONFIG, RunRecord
from .baselines import answers, shortfall


def write_card(record: RunRecord, path: str | os.PathLike[str]) -> None:
    """Write the card, as the hub reads it: README.md with a YAML header."""
    write_text(Path(path), card(record))


def card(record: RunRecord) -> str:
    """The card as Markdown. Everything in it is from the record."""
    adapter, data, model = record.adapter, record.data, record.model
    header = {
        "base_model": _base(record),
        "library_name": "peft",
        "tags": ["alloralib", adapter["method"], "lora", record.config["task"]],
    }
    train = data["train"]
    settings = ", ".join(f"{name} = {adapter[name]}" for name in ("r", "eta", "apply_to") if name in adapter)
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        f"# {model['name']} with {adapter['method']}, {record.config['task']} on {train['source']}",
        "",
        f"An adapter for `{model['name']}` ({model['class']}), trained with the method `{adapter['method']}` ({settings}): "
        f"{adapter['trained_parameters']:,} trained parameters in {adapter['modules']} modules.",
        "",
        "## Result on the test rows",
        "",
        *_table(record),
        "",
        _about_rows(record),
        "",
        "![loss curve](loss.png)",
        "",
        "## Run it again",
        "",
        "```",
        record.command,
        "```",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items())) + ".",
        f"Data: sha256 `{train['sha256']}`. All settings and the loss of every step: `record.json`.",
        "",
        "## Use it",
        "",
        *_usage(record),
    ]
    return "\n".join(lines) + "\n"


def _table(record: RunRecord) -> list[str]:
    """Every metric of the baselines, and of the model before and after training."""
    columns = answers(record)
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name in record.metrics["after"]:
        values = " | ".join(_number(metrics.get(name)) for metrics in columns.values())
        lines.append(f"| {name.replace('_', ' ')} | {values} |")
    return lines


def _about_rows(record: RunRecord) -> str:
    data = record.data
    train, test, removed = data["train"], data["test"], sum(data["removed"].values())
    sentences = [
        f"{test['rows']:,} rows of `{test['source']}`. Trained on {train['rows']:,} rows; "
        f"{removed:,} rows left out (duplicates, conflicting or missing labels)."
    ]
    if record.validation["best_step"] is not None:
        sentences.append(
            f"The weights are those of step {record.validation['best_step']}, which had the lowest loss on "
            f"{data['validation']['rows']:,} validation rows."
        )
    for name, scores in record.baselines.items():
        if fewer := scores.get("rows_with_fewer_examples"):
            sentences.append(f"{name}: {fewer:,} of the rows have room for fewer examples.")
    if short := shortfall(record):
        sentences.append(short[0].upper() + short[1:] + ".")
    return " ".join(sentences)


def _usage(record: RunRecord) -> list[str]:
    config, labels = record.config, record.data.get("labels")
    asf = record.adapter["method"] == "asf-lora"
    how = "needs alloralib, because at inference ASF-LoRA is not a LoRA adapter" if asf else "is a stock LoRA adapter"
    lines = [f"The adapter {how}.", "", "```python"]
    lines += ["import alloralib.adapters"] if asf else []
    example = _language if labels is None else _images if config["task"] == "image-classification" else _texts
    lines += [*example(record), "```"]
    if record.model.get("end_tokens"):
        ends = ", ".join(f"`{token}`" for token in record.model["end_tokens"])
        lines += ["", f"An answer ends with one of {ends}, as `generation_config.json` says; the base may not know them all."]
    if record.model.get("end_text", "").strip():
        lines += ["", f"An answer ends with the text `{record.model['end_text']}`, which is no single token: stop there."]
    if labels is not None:
        lines += ["", "Classes, in the order of the logits: " + ", ".join(labels) + "."]
    if "package" in record.model:
        package, file = record.model["package"], record.model["file"]
        lines += ["", f"It was trained on the copy of its base in the Python package `{package}` (`{file}`)."]
    return lines


def _load(record: RunRecord, auto: str, processor: str) -> list[str]:
    """The lines that load the model and what prepares its input."""
    labels, variable = record.data.get("labels"), "processor" if "Image" in processor else "tokenizer"
    ends = labels is None and bool(record.model.get("end_tokens"))
    imports = sorted([auto, processor] + ([] if labels is None else ["AutoConfig"]) + (["GenerationConfig"] if ends else []))
    lines = [
        "import torch",
        "from peft import PeftModel",
        *(["from PIL import Image"] if variable == "processor" else []),
        f"from transformers import {', '.join(imports)}",
        "",
        f"base, adapter = {_base(record)!r}, {record.config.get('output_dir', '.')!r}  # the adapter is this directory",
        f"{variable} = {processor}.from_pretrained(adapter)",
    ]
    if labels is None:
        lines.append(f'model = {auto}.from_pretrained(base, dtype="{record.config.get("dtype", "float32")}")')
    else:
        lines += [
            f'config = AutoConfig.from_pretrained(adapter, subfolder="{MODEL_CONFIG}")  # names of the classes, padding',
            f"model = {auto}.from_pretrained(base, config=config, ignore_mismatched_sizes=True)",
        ]
    lines.append("model = PeftModel.from_pretrained(model, adapter).eval()")
    if ends:
        lines.append("model.generation_config.eos_token_id = GenerationConfig.from_pretrained(adapter).eos_token_id")
    return [*lines, ""]


_CLASSES = [
    "with torch.no_grad():",
    "    logits = model(**inputs).logits",
    "print([config.id2label[index] for index in logits.argmax(dim=-1).tolist()])",
]


def _texts(record: RunRecord) -> list[str]:
    second = ', ["and its second", "as well"]' if record.config.get("text_pair_column") else ""
    length = record.config.get("max_length", 512)
    return [
        *_load(record, "AutoModelForSequenceClassification", "AutoTokenizer"),
        'texts = ["a first text", "a second text that is longer"]',
        f'inputs = tokenizer(texts{second}, padding=True, truncation=True, max_length={length}, return_tensors="pt")',
        *_CLASSES,
    ]


def _images(record: RunRecord) -> list[str]:
    return [
        *_load(record, "AutoModelForImageClassification", "AutoImageProcessor"),
        'images = [Image.new("RGB", (64, 64))]  # or Image.open(file).convert("RGB")',
        'inputs = processor(images=images, return_tensors="pt").to(model.dtype)',
        *_CLASSES,
    ]


def _language(record: RunRecord) -> list[str]:
    inputs = 'tokenizer("Once upon a time", return_tensors="pt")'
    if record.config["task"] == "chat":
        inputs = (
            'tokenizer.apply_chat_template(\n    [{"role": "user", "content": "Hello"}], add_generation_prompt=True, '
            'return_dict=True, return_tensors="pt"\n)'
        )
    return [
        *_load(record, "AutoModelForCausalLM", "AutoTokenizer"),
        f"inputs = {inputs}",
        "with torch.no_grad():",
        "    answer = model.generate(**inputs, max_new_tokens=32, do_sample=False)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _base(record: RunRecord) -> str:
    """The base as others know it; records of 0.2.0 have its name alone."""
    return record.model.get("base", record.model["name"])


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
