"""The model card of an adapter, from the record of its run."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from ..files import write_text
from ..records import RunRecord
from .baselines import shortfall


def write_card(record: RunRecord, path: str | os.PathLike[str]) -> None:
    """Write the card, as the hub reads it: README.md with a YAML header."""
    write_text(Path(path), card(record))


def card(record: RunRecord) -> str:
    """The card as Markdown. Everything in it is from the record."""
    adapter, data, model = record.adapter, record.data, record.model
    header = {
        "base_model": model["name"],
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
    columns = record.baselines | {when: record.metrics[when] for when in ("before", "after")}
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
        f"{removed:,} rows left out as duplicates."
    ]
    if record.validation["best_step"] is not None:
        sentences.append(
            f"The weights are those of step {record.validation['best_step']}, which had the lowest loss on "
            f"{data['validation']['rows']:,} validation rows."
        )
    if short := shortfall(record):
        sentences.append(short[0].upper() + short[1:] + ".")
    return " ".join(sentences)


def _usage(record: RunRecord) -> list[str]:
    if record.adapter["method"] == "asf-lora":
        return ["At inference ASF-LoRA is not a LoRA adapter: `import alloralib.adapters` before PEFT loads it."]
    labels = record.data.get("labels")
    auto = {
        "classification": "AutoModelForSequenceClassification",
        "image-classification": "AutoModelForImageClassification",
    }.get(record.config["task"], "AutoModelForCausalLM")
    arguments = "base" if labels is None else f"base, num_labels={len(labels)}"
    lines = [
        "It is a stock LoRA adapter, which PEFT loads:",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {auto}",
        "",
        'base = "..."  # ' + record.model["name"],
        f"model = PeftModel.from_pretrained({auto}.from_pretrained({arguments}), adapter)",
        "```",
    ]
    if labels is not None:
        lines += ["", "Classes, in the order of the logits: " + ", ".join(labels) + "."]
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
