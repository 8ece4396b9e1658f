"""docs/speed.md, its picture, and the README's table, from the committed records.

python -m benchmarks.page
"""

from __future__ import annotations

import importlib
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from . import growth, job, memory, padding, profile_step, stacks, step
from .measuring import KINDS, Record, kinds, paired, ratio, read

Seconds = dict[str, list[float]]
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "speed.md"
README = ROOT / "README.md"
BEATEN = {"peft-lora": "PEFT LoRA", "peft-lora-dropout": "PEFT LoRA with dropout .05", "peft-dora": "PEFT DoRA"}
"""Arms that ALLoRA is to beat."""
COMMAND = ("allora-train", "allora-chunked")
"""The step of `allora train`, and what it was in older records."""
HOURS = {"step": "", "step_quiet": ", in a quiet hour"}
"""Records of the same step: how the arms compare changes with what else a machine does."""
STEPS = {name: f"The step{hour}" for name, hour in HOURS.items()} | {
    "step_bf16": "The step in bfloat16",
    "minilm": "A small encoder",
}
OTHERS = {
    "job": "The whole job",
    "compile": "`torch.compile` in `allora train`",
    "cpu": "What a CPU is spared",
}
"""Benchmarks that are modules of their own with a `table(record)`."""

INTRODUCTION = """\
# What training costs

Made from the records in `benchmarks/records` by `python -m benchmarks.page`; `make bench` measures them again.

The **limit** is the frozen model: its forward pass and its backward pass to the inputs only. Whatever is trained through it
costs at least that. All arms run in one process and take turns, round by round; a ratio is one of medians over the rounds.
The order is drawn anew for each round; in records of before, an arm is always behind the same other one. An arm is one forward
pass, one backward pass and one step of fused AdamW; model, loss, batch and optimizer are the same for all, the adapted layers
differ. alpha = r everywhere. *ALLoRA takes* is its time over that arm's: below 1, ALLoRA is faster.

The **floor** counts the floating-point operations of ALLoRA's narrow products and of the row norms over those of the limit
(`benchmarks/floor.py`): what the ratio to the limit would be if an operation took the same time in a product of width 16 as in
one of width 576, and everything else none. ALLoRA has one narrow product more than LoRA: B's rows are scaled for the gradient
of A, and not for the gradient of the input.

Two machines of two cores were measured. On a processor **with AVX-512**, ALLoRA's arms take their larger float32 products by
oneDNN, and the others, the limit too, by torch's default, which has no kernels for that processor: that is how a step can be
below the limit. *By torch's products* is ALLoRA without oneDNN (`alloralib.fast_paths(onednn=False)`): what it is above the
limit is the adapters' own, and the floor is a floor of that. **With AVX2** only, oneDNN gains at large weights alone, and
ALLoRA's arms take those by it. That machine is shared with others, and its speed halves and doubles within the hour:
the quartiles tell how far to trust a figure. What oneDNN gains changes with it: a busy and a quiet hour are shown.

*As `allora train`* is the step of the command: its loss never holds all logits, and the frozen model's RMS norms, rotary
embeddings and gates are a node each (`alloralib.fuse_elementwise`); the other arms and the limit take the model's own. *Loss in
chunks* is the first of the two alone, and all there was of it when records without the other were made. Where a figure is
reached in the command's step alone, the table says so. *Siblings apart* computes queries, keys and values,
gate and up, each for itself, *norms layer by layer* takes row norms and scale in each layer's turn and not of all at once, and
*no fused node* uses PEFT's forward pass with ALLoRA's branch beside it: `alloralib.fast_paths` turns each off. loralib and
LitGPT stand in the same model with their linear layer. rsLoRA is LoRA with another constant; its difference to PEFT LoRA is
noise.
"""


OLDER_STEP = (
    " Measured when each arm still had frozen weights of its own, freed memory was given back to the kernel, the rule was "
    "measured behind full fine-tuning, and a node made more calls than it needs."
)
OLDER_LOSS = " Measured when the chunks of the loss were larger than the cache; the other arms are as they were."
OLDER_PROFILE = (
    " Measured when freed memory was given back to the kernel: its pages are in the operations that ask for new memory, of the "
    "arms behind one that needs less above all."
)
OLDER_STACKS = (
    " Measured before oneDNN was kept from sums over the tokens wider than 128, where it is thought to fall back to a slow "
    "kernel: that is what stands at r = 256, and the cure has not been measured on such a processor."
)


def page() -> str:
    """The whole of docs/speed.md."""
    parts = [INTRODUCTION, targets()]
    for name, title in STEPS.items():
        parts += _sections(name, title, _step)
    parts += [*_sections("memory", "Memory", _memory), *_sections("profile", "Where the time goes", _profile)]
    parts += _sections("stacks", "How the cost grows", _stacks)
    for name, title in OTHERS.items():
        table = importlib.import_module(f"benchmarks.{name}").table
        parts += _sections(name, title, lambda record, _, table=table: table(record))
    padded = read("padding", "")
    assert padded is not None
    parts += [f"## Padding\n\n{padding.table(padded)}", _absent()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _sections(name: str, title: str, text: Callable[[Record, str], str]) -> list[str]:
    """A section for each kind of processor that there is a record of that name from."""
    found = {kind: record for kind in kinds() if (record := read(name, kind))}
    return [f"## {title}, {_kind(kind)}\n\n{text(record, kind)}" for kind, record in found.items()]


def _kind(kind: str) -> str:
    return KINDS.get(kind, f"with {kind}")


def readme(text: str) -> str:
    """The README with the records' tables between its markers."""
    blocks: list[str] = []
    for kind in kinds():
        if record := read("step", kind):
            blocks.append(f"{_sentence(record['what'])}, on a processor {_kind(kind)}:\n\n{step.table(record, step.README)}")
        if quiet := read("step_quiet", kind):
            others = {"frozen": "the limit", **BEATEN}
            shares = ", ".join(f"{ratio(quiet['seconds'], 'allora', arm):.2f} of {name}" for arm, name in others.items())
            limit = statistics.median(quiet["seconds"]["frozen"])
            blocks.append(f"In a quiet hour of that machine, where the limit took {limit:.2f} s, ALLoRA took {shares}.")
        if record := read("memory", kind):
            blocks.append(_lighter(record["arms"]))
    block = "\n\n".join(blocks)
    return re.sub(r"(<!-- bench -->\n).*?(\n<!-- /bench -->)", lambda m: m[1] + block + m[2], text, flags=re.S)


def _lighter(arms: dict[str, dict[str, int]]) -> str:
    """What the command's step keeps and peaks at, and the others."""

    def both(arm: str) -> str:
        return f"{arms[arm]['kept'] / memory.MIB:,.0f} and {arms[arm]['peak'] / memory.MIB:,.0f} MiB"

    command = next(arm for arm in COMMAND if arm in arms)
    others = ", ".join(f"{name} {both(arm)}" for arm, name in BEATEN.items())
    return f"As `allora train`, such a step keeps for the backward pass, and has resident at most, {both(command)}; {others}."


def targets() -> str:
    """What was to be reached, and what was."""
    lines = ["## Targets"]
    for kind in kinds():
        rows = _rows(kind)
        if not rows:
            continue
        earlier = any(record and not _is_new(record) for record in (read("step", kind), read("stacks", kind)))
        lines += ["", f"On a processor {_kind(kind)}{', by an earlier version of the code' if earlier else ''}:", ""]
        lines += ["| what | at most | measured | quartiles over rounds | floor | as `allora train` (quartiles) | reached |"]
        lines += ["|---" * 7 + "|", *rows]
        if record := read("profile", kind):
            worst = ", ".join(f"{name} ({share:+.1%})" for name, share in profile_step.heaviest(record)[:4])
            about = "Where the time above the limit goes by torch's products, as shares of the limit"
            lines += ["", f"{about}: {worst}. All of it is below."]
    return "\n".join(lines)


def _rows(kind: str) -> list[str]:
    """The targets that the records of one kind of processor tell of."""
    rows: list[str] = []

    def add(
        what: str, most: float, value: float, spread: str = "", bound: str = "", command: float | None = None, around: str = ""
    ) -> None:
        digits = ".2%" if most < 0.1 else ".3f"
        reached = "yes" if value <= most else "**no**" if command is None or command > most else "as `allora train`"
        by_command = "" if command is None else f"{command:.3f} ({around})"
        rows.append(f"| {what} | {most:g} | {value:{digits}} | {spread} | {bound} | {by_command} | {reached} |")

    def timed(what: str, most: float, seconds: Seconds, other: str, ours: str = "allora", bound: str = "") -> None:
        low, _, high = paired(seconds, ours, other)
        command = next((arm for arm in COMMAND if arm in seconds and ours == "allora"), None)
        spread = f"{low:.2f} to {high:.2f}"
        if command is None:
            add(what, most, ratio(seconds, ours, other), spread, bound)
        else:
            least, _, greatest = paired(seconds, command, other)
            around = f"{least:.2f} to {greatest:.2f}"
            add(what, most, ratio(seconds, ours, other), spread, bound, ratio(seconds, command, other), around)

    def to_the_limit(what: str, most: float, result: Record) -> None:
        timed(f"step, {what}, of the limit", most, result["seconds"], "frozen")
        floor = f"{result['floor']['ratio']:.3f}"
        timed("the same, by torch's products as the limit", most, result["seconds"], "frozen", "allora-default", floor)

    for run, hour in HOURS.items():
        if record := read(run, kind):
            to_the_limit(f"SmolLM2-135M{hour}", 1.08, record)
            for (arm, name), most in zip(BEATEN.items(), (0.95, 0.75, 0.68), strict=True):
                timed(f"step, SmolLM2-135M{hour}, of {name}", most, record["seconds"], arm)
            add(f"the rule (norms, scale) alone, of ALLoRA's step{hour}", 0.01, step.rule_share(record))
    if record := read("profile", kind):
        add("the rule within the step, by the profiler", 0.01, profile_step.share(record, profile_step.RULE))
    if (record := read("stacks", kind)) and (result := stacks.find(record, stacks.Point(width=2048))):
        to_the_limit("hidden size 2048", 1.05, result)
    if record := read("memory", kind):
        kept = {name: arm["kept"] for name, arm in record["arms"].items()}
        for most, other in ((1.0, "peft-lora"), (0.7, "peft-lora-dropout")):
            add(f"kept for the backward, of {BEATEN[other]}", most, kept["allora"] / kept[other])
    if record := read("job", kind):
        for name, most in (("banking77", 0.4), ("arc_easy", 0.555)):  # 2.5 and 1.8 times as fast
            found = job.summary(record, name, "plain")
            add(f"the whole job, {name}, of the plain script", most, 1 / found["ratio"])
    return rows


def _step(record: Record, kind: str) -> str:
    notes = (
        f"Floor {record['floor']['ratio']:.3f}; the rule alone takes {step.rule_share(record):.2%} of ALLoRA's step. "
        f"Rounds: {record['rounds']}, on {_machine(record)}."
    )
    if not _is_new(record):
        notes += OLDER_STEP
    elif "allora-chunked" in record["seconds"] and "allora-train" not in record["seconds"]:
        notes += OLDER_LOSS
    if "bfloat16" in record["what"] and (grown := read("stacks", kind)):
        notes = " ".join((notes, *_slow_bfloat16(grown)))
    return f"{_sentence(record['what'])}.\n\n{step.table(record)}\n\n{notes}"


def _memory(record: Record, kind: str) -> str:
    about = (
        f"{_sentence(record['what'])}. *Kept* is counted tensor by tensor, without weights and batch; *resident* is the "
        "highest memory of a process in which that arm alone takes a few steps, with weights, gradients and AdamW's moments."
    )
    return f"{about}\n\n{memory.table(record)}"


def _profile(record: Record, kind: str) -> str:
    about = (
        f"{_sentence(record['what'])}, by torch's profiler, whose own cost is in it; medians over {record['rounds']} steps. "
        "GFLOP/s is the rate of ALLoRA's products: what is far below the frozen layers' rate keeps the step from its floor. "
        "The fused node's Python is an operation to the profiler, and carries the profiler's cost of what is within; PEFT's "
        "Python is none, and is not seen."
    )
    if record.get("freed_memory") != "kept":
        about += OLDER_PROFILE
    return f"{about}\n\n{profile_step.table(record)}"


def _is_new(record: Record) -> bool:
    """Whether it was measured since records name the processor's instructions."""
    return "instructions" in record["machine"]


def _picture(kind: str) -> Path:
    return PAGE.parent / "speed" / f"stacks-{kind}.png"


def _stacks(record: Record, kind: str) -> str:
    rounds = [len(point["seconds"]["frozen"]) for point in record["points"]]
    picture = _picture(kind).relative_to(PAGE.parent).as_posix()
    return "\n\n".join(
        (
            f"{_sentence(record['what'])}: layers in SmolLM2's proportions from the middle of a model, without embedding and "
            "output layer. One factor is varied at a time around hidden size 1024, one layer, r = 16, 512 tokens, float32; a "
            "factor that the record does not vary yet is not shown. "
            "Times the limit: the median of the ratios within a round, because a machine that is not quiet changes its speed "
            f"from one round to the next, and rounds are few, {min(rounds)} to {max(rounds)} a point; {_machine(record)}."
            f"{'' if _is_new(record) else OLDER_STACKS}",
            f"![times the frozen limit by hidden size, layers, rank and tokens]({picture})",
            growth.tables(record),
            *_slow_bfloat16(record),
            "Exponents p of cost ~ factor^p, by least squares on logarithms (blank where noise makes a difference negative):",
            growth.fits(record),
        )
    )


def _slow_bfloat16(record: Record) -> list[str]:
    """What there is to say where a frozen layer takes several times as long in bfloat16 as in float32."""
    for point in (stacks.Point(width=stacks.WIDTHS[0]), replace(stacks.CENTRE, compiled=True)):
        full, half = stacks.find(record, point), stacks.find(record, replace(point, dtype="bfloat16"))
        if full is None or half is None:
            continue
        times = statistics.median(half["seconds"]["frozen"]) / statistics.median(full["seconds"]["frozen"])
        if times > 2:
            return [
                f"In bfloat16 the frozen layer of hidden size {point.width} takes {times:.0f} times as long as in float32 on "
                "this processor, which has no instructions for it: train in float32 there."
            ]
    return []


def _absent() -> str:
    lines = ["## Peers that are not here", ""]
    lines.append(
        "- torchtune: its last release, 0.6.1, imports `torchao.dtypes.nf4tensor`, which torchao 0.18 no longer has, and an "
        "older torchao cannot be installed beside it."
    )
    for kind in kinds():
        absent = (read("step", kind) or {"absent": {}})["absent"]
        lines += [
            f"- {name}: not installed when the step was measured {_kind(kind)} ({reason})." for name, reason in absent.items()
        ]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _machine(record: Record) -> str:
    machine, versions = record["machine"], record["versions"]
    return f"{machine['threads']} threads of {machine['processor']}, torch {versions['torch']}, PEFT {versions['peft']}"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    for kind in kinds():
        if record := read("stacks", kind):
            growth.draw(record, _picture(kind))
    print(PAGE.relative_to(ROOT), README.relative_to(ROOT))


if __name__ == "__main__":
    main()
