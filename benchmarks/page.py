"""docs/speed.md, its picture, and the README's table, from the committed records.

python -m benchmarks.page
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from . import growth, memory, profile_step, stacks, step
from .measuring import Record, paired, ratio, read

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "speed.md"
PICTURE = ROOT / "docs" / "speed" / "stacks.png"
README = ROOT / "README.md"
ARMS = """\
*Loss in chunks* is the loss as `allora train` makes it, which never holds all logits; the other arms and the limit take the
model's own. *Siblings apart* computes queries, keys and values, gate and up, each for itself, *no fused node* uses PEFT's
forward pass with ALLoRA's branch beside it, and *torch's products* are those without oneDNN: `alloralib.fast_paths` turns each
off. loralib and LitGPT stand in the same model with their linear layer. rsLoRA is LoRA with another constant; its difference to
PEFT LoRA is noise."""
OTHERS = {
    "job": "The whole job",
    "padding": "Padding",
    "compile": "`torch.compile` in `allora train`",
    "cpu": "What a CPU is spared",
}
"""Benchmarks that are modules of their own with a `table(record)`."""

INTRODUCTION = """\
# What training costs

Made from the records in `benchmarks/records` by `python -m benchmarks.page`; `make bench` measures them again.

The **limit** is the frozen model: its forward pass and its backward pass to the inputs only. Whatever is trained through it
costs at least that. All arms run in one process and take turns, round by round, each round beginning with another arm; a ratio
is one of medians over the rounds. An arm is one forward pass, one backward pass and one step of fused AdamW; model, loss, batch
and optimiser are the same for all, the adapted layers differ. alpha = r everywhere. *ALLoRA takes* is its time over that arm's:
below 1, ALLoRA is faster.

The **floor** counts the floating-point operations of ALLoRA's narrow products and of the row norms over those of the limit
(`benchmarks/floor.py`): what the ratio to the limit would be if an operation took the same time in a product of width 16 as in
one of width 576, and everything else none. ALLoRA has one narrow product more than LoRA: B's rows are scaled for the gradient
of A, and not for the gradient of the input.

In float32 on a CPU, ALLoRA's arms take their larger products by oneDNN, and the others, the limit too, by torch's default:
that is how a step can be below the limit. *By torch's products* is ALLoRA without oneDNN
(`alloralib.fast_paths(onednn=False)`): what it is above the limit is the adapters' own, and the floor is a floor of that.
"""


def page() -> str:
    """The whole of docs/speed.md."""
    parts = [INTRODUCTION, targets(), *_steps(), _memory(), _profile(), _stacks(), *_others(), _peers()]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def readme(text: str) -> str:
    """The README with the record's table between its markers."""
    record = read("step")
    assert record is not None
    block = f"{record['what']}:\n\n{step.table(record, step.README)}"
    return re.sub(r"(<!-- bench -->\n).*?(\n<!-- /bench -->)", lambda m: m[1] + block + m[2], text, flags=re.S)


def targets() -> str:
    """What was to be reached, and what was."""
    rows: list[tuple[str, float, float, str, str]] = []

    def timed(
        what: str, most: float, seconds: dict[str, list[float]], other: str, ours: str = "allora", bound: str = ""
    ) -> None:
        low, _, high = paired(seconds, ours, other)
        rows.append((what, most, ratio(seconds, ours, other), f"{low:.2f} to {high:.2f}", bound))

    def to_the_limit(what: str, most: float, result: Record) -> None:
        timed(f"step, {what}, of the limit", most, result["seconds"], "frozen")
        floor = f"{result['floor']['ratio']:.3f}"
        timed("the same, by torch's products as the limit", most, result["seconds"], "frozen", "allora-default", floor)

    if record := read("step"):
        seconds = record["seconds"]
        to_the_limit("SmolLM2-135M", 1.08, record)
        timed("step, SmolLM2-135M, of PEFT LoRA", 0.95, seconds, "peft-lora")
        timed("step, SmolLM2-135M, of PEFT LoRA with dropout .05", 0.75, seconds, "peft-lora-dropout")
        timed("step, SmolLM2-135M, of PEFT DoRA", 0.68, seconds, "peft-dora")
        rows.append(("the rule (norms, scale) alone, of ALLoRA's step", 0.01, step.rule_share(record), "", ""))
    if record := read("profile"):
        rows.append(("the rule within the step, by the profiler", 0.01, profile_step.share(record, profile_step.RULE), "", ""))
    if (record := read("stacks")) and (result := stacks.find(record, stacks.Point(width=2048))):
        to_the_limit("hidden size 2048", 1.05, result)
    if record := read("memory"):
        kept = {name: arm["kept"] for name, arm in record["arms"].items()}
        for most, other, name in ((1.0, "peft-lora", "PEFT LoRA"), (0.7, "peft-lora-dropout", "PEFT LoRA with dropout")):
            rows.append((f"kept for the backward, of {name}", most, kept["allora"] / kept[other], "", ""))
    lines = ["## Targets", "", "| what | at most | measured | quartiles over rounds | floor | reached |", "|---" * 6 + "|"]
    for what, most, value, spread, bound in rows:
        digits = ".2%" if most < 0.1 else ".3f"
        lines.append(f"| {what} | {most:g} | {value:{digits}} | {spread} | {bound} | {'yes' if value <= most else '**no**'} |")
    if any(value > most for _, most, value, *_ in rows) and (record := read("profile")):
        worst = ", ".join(f"{name} ({share:+.1%})" for name, share in profile_step.heaviest(record)[:4])
        about = "Where the time above the limit goes by torch's products, as shares of the limit"
        lines += ["", f"{about}: {worst}. All of it is below."]
    return "\n".join(lines)


def _steps() -> list[str]:
    titles = {"step": "The step", "step_bf16": "The step in bfloat16", "minilm": "A small encoder"}
    parts: list[str] = []
    for name, title in titles.items():
        if record := read(name):
            notes = (
                f"Floor {record['floor']['ratio']:.3f}; the rule alone takes {step.rule_share(record):.2%} of ALLoRA's step. "
                f"Rounds: {record['rounds']}, on {_machine(record)}."
            )
            parts.append(f"## {title}\n\n{_sentence(record['what'])}.\n\n{step.table(record)}\n\n{notes}")
    if parts:
        parts[0] += "\n\n" + ARMS
    return parts


def _memory() -> str:
    record = read("memory")
    if record is None:
        return ""
    about = (
        f"{_sentence(record['what'])}. *Kept* is counted tensor by tensor, without weights and batch; *resident* is the "
        "highest memory of a process in which that arm alone takes a few steps, with weights, gradients and AdamW's moments."
    )
    return f"## Memory\n\n{about}\n\n{memory.table(record)}"


def _profile() -> str:
    record = read("profile")
    if record is None:
        return ""
    about = (
        f"{_sentence(record['what'])}, by torch's profiler, whose own cost is in it; medians over {record['rounds']} steps. "
        "GFLOP/s is the rate of ALLoRA's products: what is far below the frozen layers' rate keeps the step from its floor. "
        "The fused node's Python is an operation to the profiler, and carries the profiler's cost of what is within; PEFT's "
        "Python is none, and is not seen. Where several passes add up to a step the norms are taken in the first of them "
        "(`alloralib.hold_row_scales`; `allora train` does)."
    )
    return f"## Where the time goes\n\n{about}\n\n{profile_step.table(record)}"


def _stacks() -> str:
    record = read("stacks")
    if record is None:
        return ""
    picture = PICTURE.relative_to(PAGE.parent).as_posix()
    return "\n\n".join(
        (
            "## How the cost grows",
            f"{_sentence(record['what'])}: layers in SmolLM2's proportions from the middle of a model, without embedding and "
            "output layer. One factor is varied at a time around hidden size 1024, one layer, r = 16, 512 tokens, float32; a "
            "factor that the record does not vary yet is not shown. "
            f"Times the limit; {_machine(record)}.",
            f"![times the frozen limit by hidden size, layers, rank and tokens]({picture})",
            growth.tables(record),
            "Exponents p of cost ~ factor^p, by least squares on logarithms (blank where noise makes a difference negative):",
            growth.fits(record),
        )
    )


def _others() -> list[str]:
    parts: list[str] = []
    for name, title in OTHERS.items():
        record = read(name)
        if record is not None:
            module = importlib.import_module(f"benchmarks.{name}")
            parts.append(f"## {title}\n\n{module.table(record)}")
    return parts


def _peers() -> str:
    lines = ["## Peers that are not here", ""]
    lines.append(
        "- torchtune: its last release, 0.6.1, imports `torchao.dtypes.nf4tensor`, which torchao 0.18 no longer has, and an "
        "older torchao cannot be installed beside it."
    )
    record = read("step") or {"absent": {}}
    lines += [f"- {name}: not installed when this was measured ({reason})." for name, reason in record["absent"].items()]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _machine(record: Record) -> str:
    machine, versions = record["machine"], record["versions"]
    return f"{machine['threads']} threads of {machine['processor']}, torch {versions['torch']}, PEFT {versions['peft']}"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    if record := read("stacks"):
        growth.draw(record, PICTURE)
    print(PAGE.relative_to(ROOT), README.relative_to(ROOT))


if __name__ == "__main__":
    main()
