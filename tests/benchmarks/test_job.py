"""The comparison of whole jobs, and that the plain script does the work that it says."""

import datasets
import pytest

from benchmarks import job, plain_job

from ..conftest import WORDS
from ..tiny import word_level


@pytest.mark.parametrize("padded", [True, False])
def test_the_plain_script_trains_on_the_answer_and_its_end_and_not_on_padding(padded):
    tokenizer = word_level(WORDS)
    tokenizer.pad_token, tokenizer.padding_side = (
        tokenizer.eos_token,
        "right",
    )  # padding is the end of text, as in SmolLM2
    rows = datasets.Dataset.from_dict({"prompt": ["the film was", "a plot"], "completion": [" good", " bad"]})
    made = plain_job.tokenized(rows, tokenizer, padding=padded)
    end = tokenizer.eos_token_id
    for row, prompt, answer in zip(made, rows["prompt"], rows["completion"], strict=True):
        learned = [label for label in row["labels"] if label != -100]
        assert learned == [*tokenizer(answer)["input_ids"], end]
        assert row["labels"][: len(tokenizer(prompt)["input_ids"])] == [-100] * len(tokenizer(prompt)["input_ids"])
    assert [len(ids) for ids in made["input_ids"]] == ([5, 5] if padded else [5, 4])


def test_jobs_are_compared_by_ratios_of_medians():
    ours = [{"seconds": s, "accuracy": 0.5, "low": 0.4, "high": 0.6, "tokens": 100, "padded_tokens": 102} for s in (9, 10, 20)]
    plain = [
        {"seconds": s, "accuracy": a, "low": a - 0.1, "high": a + 0.1, "tokens": 100, "padded_tokens": 400}
        for s, a in ((30, 0.55), (25, 0.75), (40, 0.5))
    ]
    for one in (*ours, *plain):
        one |= {"updates": 3, "phases": {"train": one["seconds"]}}
    record = {"jobs": {"banking77": {"allora": ours, "plain": plain}}}
    found = job.summary(record, "banking77", "plain")
    assert found["ratio"] == 3.0
    assert found["ratios"] == (2.0, 30 / 9)
    assert found["padding"] == pytest.approx(3.0)
    assert found["inside"] == 2
    assert found["training"] == 30
    assert "| here | banking77, 3 updates |" in job.table({"here": record})
    assert "| 3.00 (2.00 to 3.33) |" in job.table({"here": record})
