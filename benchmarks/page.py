"""Fills the tables of docs/speed.md and of the README from the committed records, and draws the plots of docs/speed.

The text of docs/speed.md is written by hand. Each `<!-- name -->` block in it is replaced by what `BLOCKS[name]` returns.

    python -m benchmarks.page
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from . import compile as compiling
from . import cpu, growth, job, memory, padding, profile_step, step, versions
from .arms import OTHERS, TITLES
from .measuring import KINDS, RECORDS, ROOT, Record, is_earlier, kinds, label, paired, read, read_all, spread

PAGE = ROOT / "docs" / "speed.md"
README = ROOT / "README.md"
STEPS = {"step": "SmolLM2", "step_quiet": "SmolLM2, quiet hour", "minilm": "MiniLM", "step_bf16": "SmolLM2, bfloat16"}
"""Records of `benchmarks.step`, as the columns of a table name them."""
FAST_PATHS = {
    "fused node": ("allora", "allora-unfused"),
    "oneDNN products": ("allora", "allora-default"),
    "chunked loss": ("allora-chunked", "allora"),
    "fused norms and gates": ("allora-train", "allora-chunked"),
}
"""The arm with a fast path, and the arm without it."""
NOTES = {
    "†": "† Measured with an earlier version of alloralib.",
    "‡": "‡ Measured with the chunked loss only, without the fused norms and gates.",
}
"""Footnotes of the README's table by their mark."""


def filled(text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """The text with every `<!-- name -->...<!-- /name -->` block of that name filled anew."""
    for name, make in blocks.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        if not block.search(text):
            raise ValueError(f"the text has no block <!-- {name} -->")
        content = make().strip()
        text = block.sub(lambda m, content=content: m[1] + (content + "\n" if content else "") + m[2], text)
    return text


def page(text: str) -> str:
    """docs/speed.md with its tables filled from the records."""
    return filled(text, BLOCKS)


def readme(text: str) -> str:
    """README.md with its table filled from the records."""
    return filled(text, {"bench": _readme})


def _readme() -> str:
    """`allora train` against the others: one row for each kind of processor."""
    records, kept = read_all("step"), read_all("memory")
    what = next(iter(records.values()))["what"].removeprefix("training step, ")
    heads = [title for title, _ in step.TARGETS.values()]
    lines = [
        f"Time of an `allora train` step ({what}), as a multiple of the time of:",
        "",
        f"| processor | {' | '.join(heads)} | memory kept for the backward pass, of PEFT LoRA's |",
        "|---" * (2 + len(heads)) + "|",
    ]
    for kind, record in records.items():
        cells = [_multiple(record, other) for other in step.TARGETS]
        cells += [f"{memory.kept(kept[kind]):.2f}" if kind in kept else "not measured"]
        lines.append(f"| {_titled(kind, record)} | {' | '.join(cells)} |")
    notes = [note for mark, note in NOTES.items() if mark in "".join(lines)]
    return "\n".join([*lines, *(["", " ".join(notes)] if notes else [])])


def _multiple(record: Record, other: str) -> str:
    arm = step.ours(record)
    return f"{paired(record['seconds'], arm, other)[1]:.2f}" if arm and other in record["seconds"] else "not measured"


def _titled(kind: str, record: Record, name: str = "") -> str:
    """A record of `benchmarks.step` as a table names it."""
    partly = "‡" if step.ours(record) == "allora-chunked" else ""
    return ", ".join(part for part in (name, label(kind, record)) if part) + partly


def _steps(*names: str) -> dict[str, Record]:
    """Records of `benchmarks.step` by the title of their column."""
    return {_titled(kind, record, STEPS[name]): record for name in names for kind, record in read_all(name).items()}


def _labeled(name: str) -> dict[str, Record]:
    """The records of a name by the label of their processor."""
    return {label(kind, record): record for kind, record in read_all(name).items()}


def _each(name: str, text: Callable[[Record], str]) -> str:
    """The text of every record of a name, under the label of its processor."""
    return "\n\n".join(f"**{kind}**\n\n{text(record)}" for kind, record in _labeled(name).items())


def _targets() -> str:
    records = _steps("step", "step_quiet")
    kept = [memory.target(read("memory", kind)) for kind in read_all("step")] + [""] * len(read_all("step_quiet"))
    return "\n".join(
        (
            f"| `allora train` | at most | {' | '.join(records)} |",
            "|---" * (2 + len(records)) + "|",
            *step.targets(records),
            f"| memory kept for the backward pass, of PEFT LoRA's | {memory.MOST_KEPT:.2f} | {' | '.join(kept)} |",
        )
    )


def _fast_paths() -> str:
    steps, memories = _steps("step", "step_quiet", "minilm"), _labeled("memory")
    heads = [*steps, *(f"{what} memory, {kind}" for kind in memories for what in ("kept", "peak"))]
    lines = [f"| with / without | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for title, (arm, other) in FAST_PATHS.items():
        cells = [_ratio(record["seconds"], arm, other) for record in steps.values()]
        for arms in (record["arms"] for record in memories.values()):
            cells += [f"{arms[arm][what] / arms[other][what]:.2f}" for what in ("kept", "peak")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    gains = [f"{spread(cpu.gain(record), 3)} ({kind})" for kind, record in _labeled("cpu").items()]
    about = "Step with freed memory kept over step with it returned to the system, median and range over processes"
    return "\n".join([*lines, "", f"{about}: {', '.join(gains)}."])


def _ratio(seconds: dict[str, list[float]], arm: str, other: str) -> str:
    return spread(paired(seconds, arm, other)) if arm in seconds and other in seconds else ""


def _products() -> str:
    kind, record = next(iter(_labeled("cpu").items()))
    return f"{cpu.table(record)}\n\nMeasured on {kind}."


def _versions() -> str:
    return f"## What the 0.2 rebuild changed\n\n{_each('versions', versions.table)}" if read_all("versions") else ""


def _profile() -> str:
    records = _labeled("profile")
    lines = [profile_step.table(records), ""]
    for kind, record in records.items():
        worst = ", ".join(f"{name} ({share:+.1%})" for name, share in profile_step.heaviest(record)[:4])
        lines.append(f"- Added most to the frozen step without oneDNN, {kind}: {worst}.")
    shares = {title: step.rule_share(record) for title, record in _steps("step", "step_quiet", "minilm").items()}
    alone = ", ".join(f"{share:.2%} ({title})" for title, share in shares.items() if share is not None)
    return "\n".join([*lines, f"- Row norms and scale timed alone, of ALLoRA's step: {alone}."])


def _slower() -> str:
    lines = ["| benchmark | `allora train` is slower than | ALLoRA in your own loop is slower than |", "|---|---|---|"]
    for title, record in _steps(*STEPS).items():
        lines.append(f"| {title} | {_losses(record, step.ours(record))} | {_losses(record, 'allora')} |")
    for kind, record in _labeled("stacks").items():
        points = ", ".join(f"{title} ({ratio:.2f})" for title, ratio in growth.slower(record))
        lines.append(f"| decoder layers, {kind} | not measured | {f'PEFT LoRA at: {points}' if points else 'none'} |")
    return "\n".join(lines)


def _losses(record: Record, arm: str | None) -> str:
    seconds = record["seconds"]
    if arm not in seconds:
        return "not measured"
    lost = {other: paired(seconds, arm, other) for other in OTHERS if other in seconds}
    return ", ".join(f"{TITLES[other]} {spread(ratios)}" for other, ratios in lost.items() if ratios[1] > 1) or "none"


def _picture(kind: str) -> Path:
    return PAGE.parent / "speed" / f"stacks-{kind}.png"


def _growth() -> str:
    caption = "Multiples of the frozen step by hidden size, layers, rank and tokens"
    plots = [f"![{caption}, {label(k, record)}](speed/{_picture(k).name})" for k, record in read_all("stacks").items()]
    return "\n\n".join((growth.table(_labeled("stacks")), *plots))


def _padding() -> str:
    record = read("padding", "")
    assert record is not None
    return padding.overview(record)


def _records() -> str:
    """All records, grouped by the code, the processor and the libraries that they were measured with."""
    groups: dict[str, list[str]] = {}
    absent: dict[str, str] = {}
    for kind in [*kinds(), ""]:
        for path in sorted((RECORDS / kind).glob("*.json")):
            record = read(path.stem, kind)
            assert record is not None
            used, machine = record["versions"], record["machine"]
            code = f"{used['alloralib']}{'†' if is_earlier(record) else ''} | {record.get('revision') or 'not recorded'}"
            processor = f"{machine['threads']} cores of {machine['processor']}, {KINDS.get(kind, kind.upper()) or 'any'}"
            group = f"{code} | {processor} | torch {used['torch']}, PEFT {used['peft']}"
            groups.setdefault(group, []).append(f"`{path.stem}`")
            absent |= record.get("absent", {})
    lines = ["| alloralib | revision | processor | libraries | records |", "|---" * 5 + "|"]
    lines += [f"| {group} | {', '.join(names)} |" for group, names in groups.items()]
    if absent:
        lines += ["", *(f"- {name} was not installed when a step was measured: {why}." for name, why in absent.items())]
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "targets": _targets,
    "step": lambda: step.table(_steps(*STEPS)),
    "memory": lambda: _each("memory", memory.table),
    "versions": _versions,
    "fast-paths": _fast_paths,
    "padding": _padding,
    "compile": lambda: _each("compile", compiling.table),
    "products": _products,
    "profile": _profile,
    "slower": _slower,
    "growth": _growth,
    "job": lambda: job.table(_labeled("job")),
    "records": _records,
}
"""The blocks of docs/speed.md."""


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    for kind, record in read_all("stacks").items():
        growth.draw(record, _picture(kind))
    print(PAGE.relative_to(ROOT), README.relative_to(ROOT))


if __name__ == "__main__":
    main()
