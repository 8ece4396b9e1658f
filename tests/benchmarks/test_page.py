"""docs/speed.md and the README's table are what the committed records say, losses included."""

import pytest

from benchmarks import arms, measuring, page, step


def test_the_page_and_the_readme_show_the_records() -> None:
    for path, fill in ((page.PAGE, page.page), (page.README, page.readme)):
        text = path.read_text(encoding="utf-8")
        assert fill(text) == text, f"{path.name} differs from the records: run `python -m benchmarks.page`"
    for kind in measuring.kinds():
        assert page._picture(kind).is_file() == (measuring.read("stacks", kind) is not None)


def test_the_page_can_be_read_in_five_minutes() -> None:
    assert len([line for line in page.PAGE.read_text(encoding="utf-8").splitlines() if not line.startswith("<!--")]) <= 300


def test_blocks_are_filled_and_the_text_between_them_stays() -> None:
    text = "before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\nafter\n"
    filled = page.filled(text, {"a": lambda: "| new \\1 |", "b": lambda: ""})
    assert filled == "before\n<!-- a -->\n| new \\1 |\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\nafter\n"
    assert page.filled(filled, {"b": lambda: "x"}).endswith("<!-- b -->\nx\n<!-- /b -->\nafter\n")
    with pytest.raises(ValueError, match="no block <!-- c -->"):
        page.filled(text, {"c": lambda: ""})


def test_every_step_record_is_on_the_page_and_its_losses_are_too() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    lost = text.split("## Where ALLoRA is slower")[1].split("\n## ")[0]
    for name in page.STEPS:
        for kind, record in measuring.read_all(name).items():
            title = page._titled(kind, record, page.STEPS[name])
            row = next(line for line in lost.splitlines() if line.startswith(f"| {title} |"))
            for arm, cell in zip((step.ours(record), "allora"), row.split("|")[2:4], strict=True):
                for other in arms.OTHERS if arm in record["seconds"] else ():
                    if other in record["seconds"]:
                        slower = measuring.paired(record["seconds"], arm, other)[1] > 1
                        assert (f"{arms.TITLES[other]} " in cell) == slower, (title, arm, other)


def test_a_step_is_faster_than_lora_with_dropout_and_than_dora() -> None:
    """What the README promises. The records are committed, so this times nothing."""
    records = measuring.read_all("step")
    assert records
    for record in records.values():
        for peer in ("peft-lora-dropout", "peft-dora"):
            assert measuring.paired(record["seconds"], step.ours(record), peer)[1] < 1


def test_the_readme_has_one_row_for_each_kind_of_processor_newest_first(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(measuring, "RECORDS", tmp_path)
    made = {
        "avx512": ("2026-01-01", "0.1.0", {"frozen": [1.0], "allora-chunked": [0.8], "peft-lora": [1.6]}),
        "avx2": ("2026-02-01", "99.0.0", {"frozen": [1.0], "allora-train": [1.2], "peft-lora": [1.0], "peft-dora": [2.0]}),
    }
    for kind, (date, version, seconds) in made.items():
        record = {"what": "training step, a model", "date": date, "versions": {"alloralib": version}, "seconds": seconds}
        measuring.write(record | {"machine": {}}, measuring.record_of("step", kind))
    kept = {"allora-train": {"kept": 60}, "peft-lora": {"kept": 100}}
    measuring.write({"arms": kept, "machine": {}}, measuring.record_of("memory", "avx2"))
    monkeypatch.setattr("alloralib.__version__", "99.0.0")
    assert page._readme().splitlines()[4:] == [
        "| AVX2 | 1.20 | 1.20 | not measured | 0.60 | 0.60 |",
        "| AVX-512†‡ | 0.80 | 0.50 | not measured | not measured | not measured |",
        "",
        f"{page.NOTES['†']} {page.NOTES['‡']}",
    ]
