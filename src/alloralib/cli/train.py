"""`allora train`: every field of `RunConfig` as a flag."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .quiet import quiet

if TYPE_CHECKING:
    from ..records import RunRecord
    from ..training.config import RunConfig

HELP = "fine-tune a model with an adapter"
DESCRIPTION = """\
Fine-tune a model with an adapter, and judge it on rows it has not seen.

  allora train --task classification --model smollm2-135m --data tweets --output-dir runs/tweets
  allora train --config run.yaml --eta 1.5
  allora train --config run.yaml --dry-run          what it would do and cost; nothing is written
  allora train --resume --output-dir runs/tweets    go on where it was stopped

The adapter that is written is a stock LoRA adapter: anything that loads LoRA runs it."""


def _fields() -> dict[str, Any]:
    from ..training.config import RunConfig

    return RunConfig.model_fields


def flags() -> list[str]:
    """All flags, for the nearest name to a misspelt one."""
    return [
        "--config",
        "--print-config",
        "--dry-run",
        "--resume",
        "--json",
        *("--" + name.replace("_", "-") for name in _fields()),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags: values stay text here, `RunConfig` reads them."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings; flags go over it")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings as YAML and stop")
    parser.add_argument("--dry-run", action="store_true", help="check everything, measure one step, and stop")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run of --output-dir")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    group = parser.add_argument_group("settings")
    for name, field in _fields().items():
        flag = "--" + name.replace("_", "-")
        default = field.get_default()
        shown = "" if default is None or field.is_required() else f" [{default}]"
        about = f"{field.description}{shown}".replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(flag, action="store_true", default=None, help=about)
        else:
            group.add_argument(flag, metavar=name.upper().split("_")[-1], help=about)


def run(arguments: argparse.Namespace) -> int:
    """Train, and say what came of it."""
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
    """The settings that the unfinished run began with; what else is said must agree with them."""
    import yaml

    from ..errors import ConfigError
    from ..training.config import RunConfig
    from ..training.directory import RunDirectory

    said = RunConfig.read(file) | given
    if "output_dir" not in said:
        raise ConfigError("--resume needs to know which run", remedy="give --output-dir, or --config with its settings")
    space = RunDirectory(said["output_dir"])
    space.check_resumable()
    if space.is_complete:
        from ..records import RECORD_FILE, RunRecord

        return RunConfig.of(RunRecord.read(space.working / RECORD_FILE).config | {"output_dir": said["output_dir"]})
    began = RunConfig.of(yaml.safe_load(space.settings()), str(space.working))
    now = RunConfig.of(began.model_dump(exclude_none=True) | {k: v for k, v in said.items() if k != "overwrite"})
    for name in RunConfig.model_fields:
        if name not in ("output_dir", "overwrite") and getattr(began, name) != getattr(now, name):
            raise ConfigError(
                f"the run began with {name}={getattr(began, name)!r}, not {getattr(now, name)!r}",
                where="--resume",
                remedy=f"leave --{name.replace('_', '-')} out to go on, or start anew with --overwrite",
            )
    return now


def _decorate(record: RunRecord, directory: Path) -> None:
    from ..reporting.card import write_card
    from ..reporting.curve import draw_loss

    draw_loss(record, directory / "loss.png")
    write_card(record, directory / "README.md")


def summary(record: RunRecord, directory: str) -> str:
    """What a person wants to know of a finished run, in a few lines."""
    before, after = record.metrics["before"], record.metrics["after"]
    rows = record.data["test"]["rows"]
    if "accuracy" in after:
        lines = [
            f"accuracy on {rows} test rows",
            *([f"  majority class  {record.data['majority']:.3f}"] if "majority" in record.data else []),
            f"  before          {before['accuracy']:.3f}  (95 % interval {before['accuracy_low']:.3f} to "
            f"{before['accuracy_high']:.3f})",
            f"  after           {after['accuracy']:.3f}  (95 % interval {after['accuracy_low']:.3f} to "
            f"{after['accuracy_high']:.3f})",
        ]
    else:
        lines = [
            f"loss per token on {rows} test rows ({after['tokens']:,} tokens)",
            f"  before  {before['loss']:.4f}  (perplexity {before['perplexity']:.2f})",
            f"  after   {after['loss']:.4f}  (perplexity {after['perplexity']:.2f})",
        ]
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
