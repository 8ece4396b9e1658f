"""The model card, from a record."""

from alloralib.reporting.card import card, write_card

from ..test_records import record


def test_the_card_says_what_the_record_says() -> None:
    text = card(record())
    for fact in (
        "minilm-l6",
        "allora",
        "r = 4, eta = 2.0",
        "0.7500",
        "1,000 rows",
        "5,000",
        "no, yes",
        "num_labels=2",
        "3 rows left out",
        "step 4",
    ):
        assert fact in text, fact
    assert text.startswith("---\nbase_model: minilm-l6\n")


def test_a_card_without_labels_or_with_a_method_that_peft_does_not_load(tmp_path) -> None:
    data = {k: v for k, v in record().data.items() if k not in ("labels", "majority")}
    config = {"task": "causal-lm", "model": "smollm2-135m"}
    write_card(record(data=data, config=config), tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForCausalLM.from_pretrained(base)" in text
    assert "Classes" not in text
    assert "import alloralib.adapters" in card(record(adapter=record().adapter | {"method": "asf-lora"}))
