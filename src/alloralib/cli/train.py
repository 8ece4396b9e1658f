"""`allora train`: every field of `RunConfig` as a flag."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_json
from .quiet import quiet

if TYPE_CHECKING:
    from ..records import RunRecord
    from ..training.config import RunConfig

HELP = "fine-tune a model with an adapter"
DESCRIPTION = """\
Fine-tune a model with an adapter, and test it on rows that it was not trained on.

  allora train --task classification --model smollm2-135m --data tweets --output-dir runs/tweets
  allora train --config run.yaml --eta 1.5
  allora train --config run.yaml --dry-run          show what it would do and cost, without writing anything
  allora train --resume --output-dir runs/tweets    continue an unfinished run

The result is a stock LoRA adapter: anything that loads LoRA adapters loads it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, one for every field of `RunConfig`, which also parses their values."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings; flags override it")
    parser.add_argument("--print-config", action="store_true", help="print the resulting settings as YAML, and exit")
    parser.add_argument("--dry-run", action="store_true", help="check everything, measure one training step, and exit")
    parser.add_argument("--resume", action="store_true", help="continue the unfinished run of --output-dir")
    add_json(parser)
    from ..training.config import RunConfig

    group = parser.add_argument_group("settings")
    for name, field in RunConfig.model_fields.items():
        flag = "--" + name.replace("_", "-")
        default = field.get_default()
        shown = "" if default is None or field.is_required() else f" [{default}]"
        about = f"{field.description}{shown}".replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(flag, action="store_true", default=None, help=about)
        else:
            group.add_argument(flag, metavar=name.upper().split("_")[-1], help=about)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print the scores."""
    from ..training.config import RunConfig

    given = {name: value for name in RunConfig.model_fields if (value := getattr(arguments, name)) is not None}
    config = _unfinished(arguments.config, given) if arguments.resume else RunConfig.load(arguments.config, given)
    if arguments.print_config:
        print(config.to_yaml(), end="")
        return 0
    quiet()
    from ..training.preflight import report
    from ..training.processes import is_main_process
    from ..training.run import dry_run, train

    if arguments.dry_run:
        found = dry_run(config)
        print(json.dumps(found) if arguments.json else f"{config.to_yaml()}\n{report(config, found)}")
        return 0
    record = train(
        config, resume=arguments.resume, decorate=_decorate, show=lambda c, found: print(report(c, found), file=sys.stderr)
    )
    if not is_main_process():
        return 0
    if arguments.json:
        print(json.dumps({"output_dir": config.output_dir, "metrics": record.metrics}))
    else:
        print(summary(record, config.output_dir))
    return 0


def _unfinished(file: str | None, given: dict[str, Any]) -> RunConfig:
    """The settings of the unfinished run. Raises `ConfigError` if a setting that was given now differs from the run's."""
    import yaml

    from ..errors import ConfigError
    from ..training.config import RunConfig
    from ..training.directory import RunDirectory
    from ..training.state import knows_base

    given = RunConfig.read(file) | given
    if "output_dir" not in given:
        raise ConfigError("--resume needs the directory of the run", remedy="give --output-dir, or --config with its settings")
    directory = RunDirectory(given["output_dir"])
    directory.check_resumable()
    if directory.is_complete:
        from ..records import RECORD_FILE, RunRecord

        return RunConfig.of_run(RunRecord.read(directory.working / RECORD_FILE).config | {"output_dir": given["output_dir"]})
    started = RunConfig.of_run(yaml.safe_load(directory.settings()), str(directory.working))
    now = RunConfig.of(started.model_dump(exclude_none=True) | {k: v for k, v in given.items() if k != "overwrite"})
    free = ("output_dir", "overwrite", *(["model"] if knows_base(directory.checkpoints) else []))
    for name in RunConfig.model_fields:
        if name not in free and getattr(started, name) != getattr(now, name):
            raise ConfigError(
                f"the run was started with {name}={getattr(started, name)!r}, not {getattr(now, name)!r}",
                where="--resume",
                remedy=f"leave --{name.replace('_', '-')} out to continue, or start over with --overwrite",
            )
    return now


def _decorate(record: RunRecord, directory: Path) -> None:
    from ..reporting.card import write_card
    from ..reporting.curve import draw_loss

    draw_loss(record, directory / "loss.png")
    write_card(record, directory / "README.md")


def summary(record: RunRecord, directory: str) -> str:
    """The result of a finished run in a few lines."""
    from ..reporting.baselines import answers, shortfall

    after = record.metrics["after"]
    rows = record.data["test"]["rows"]
    if "accuracy" in after:
        lines = [f"accuracy on {rows} test rows"]
        for name, scores in answers(record).items():
            low, high = scores.get("accuracy_low"), scores.get("accuracy_high")
            interval = "" if low is None else f"  (95 % interval {low:.3f} to {high:.3f})"
            lines.append(f"  {name:<16}{scores['accuracy']:.3f}{interval}")
    else:
        lines = [f"loss per token on {rows} test rows ({after['tokens']:,} tokens)"]
        for name, scores in answers(record).items():
            lines.append(f"  {name:<8}{scores['loss']:.4f}  (perplexity {scores['perplexity']:.2f})")
    if short := shortfall(record):
        lines.append(f"  {short}")
    steps, seconds = len(record.history), record.seconds["train"]
    tokens = record.history[-1]["tokens"] if record.history else 0
    lines.append(
        f"{record.adapter['trained_parameters']:,} trained parameters, {steps} steps in {seconds:.0f} s"
        + (f", {tokens / max(seconds, 1e-9):,.0f} tokens/s" if tokens else "")
    )
    if record.validation["best_step"] is not None:
        lines.append(f"weights of step {record.validation['best_step']}, the lowest validation loss")
    lines.append(f"adapter, record, card and loss curve: {directory}")
    return "\n".join(lines)
