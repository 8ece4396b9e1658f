r"""The eight commonsense tasks as LLM-Adapters formats them (Hu et al. 2023, arXiv:2304.01933).

A hub row becomes an instruction, which ends in the list of possible answers, and an answer ("answer2"). The model reads
`PROMPT` and completes "the correct answer is answer2".

>>> instruction("boolq", {"question": "is water wet", "answer": True})
('Please answer the following question with true or false, question: is water wet?\n\nAnswer format: true/false', 'true')
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
COMPLETION = "the correct answer is {answer}"

Formatted = tuple[str, str]  # instruction and answer; an empty answer if the row has no label


def instruction(task: str, row: dict[str, Any]) -> Formatted:
    """The published instruction of a hub row, and its answer ("" if the row is unlabelled).

    Raises:
        KeyError: a column of the hub's set is missing.
    """
    return FORMATTERS[task](row)


def example(text: str, answer: str) -> dict[str, Any]:
    """Prompt, choices and right choice of an instruction that ends in its "Answer format: a/b/..." line.

    Raises:
        ValueError: there is no such line.
    """
    formats = re.findall(r"Answer format: ?(\S+)\s*$", text)
    if not formats:
        raise ValueError('the instruction does not end in "Answer format: .../..."')
    return {
        "prompt": PROMPT.format(instruction=text),
        "choices": [COMPLETION.format(answer=name) for name in formats[0].split("/")],
        "answer": COMPLETION.format(answer=answer) if answer else None,
    }


def _boolq(row: dict[str, Any]) -> Formatted:
    text = f"Please answer the following question with true or false, question: {row['question']}?"
    return f"{text}\n\nAnswer format: true/false", str(row["answer"]).lower()


def _piqa(row: dict[str, Any]) -> Formatted:
    text = f"Please choose the correct solution to the question: {row['goal']}"
    text += f"\n\nSolution1: {row['sol1']}\n\nSolution2: {row['sol2']}"
    return f"{text}\n\nAnswer format: solution1/solution2", _numbered("solution", row["label"], first=0)


def _social_i_qa(row: dict[str, Any]) -> Formatted:
    question = f"{row['context']} {row['question']}"
    return _question(question, [row[f"answer{letter}"] for letter in "ABC"]), _numbered("answer", row["label"], first=1)


def _hellaswag(row: dict[str, Any]) -> Formatted:
    text = f"Please choose the correct ending to complete the given sentence: {row['activity_label']}: {row['ctx']}"
    return f"{text}\n\n{_listed('ending', row['endings'])}", _numbered("ending", row["label"], first=0)


def _winogrande(row: dict[str, Any]) -> Formatted:
    text = "Please choose the correct answer to fill in the blank to complete the given sentence: "
    text += f"{row['sentence']}\n\nOption1: {row['option1']} Option2: {row['option2']}"
    # as published: a space, not a blank line, before the format
    return f"{text} Answer format: option1/option2", _numbered("option", row["answer"], first=1)


def _lettered(question: str, row: dict[str, Any]) -> Formatted:
    """ARC and OpenBookQA; `question` is the column with the question."""
    choices = row["choices"]
    names, texts = list(choices["label"]), list(choices["text"])  # A, B, ... or 1, 2, ...
    key = row["answerKey"]
    return _question(row[question], texts), f"answer{names.index(key) + 1}" if key in names else ""


def _question(question: str, answers: list[str]) -> str:
    return f"Please choose the correct answer to the question: {question}\n\n{_listed('answer', answers)}"


def _listed(noun: str, texts: list[str]) -> str:
    named = " ".join(f"{noun.capitalize()}{i}: {text}" for i, text in enumerate(texts, start=1))
    return f"{named}\n\nAnswer format: {'/'.join(f'{noun}{i}' for i in range(1, len(texts) + 1))}"


def _numbered(noun: str, label: Any, *, first: int) -> str:
    """The answer of a label that counts from `first`; "" for -1 and empty labels, which mean none on the hub."""
    text = "" if label is None else str(label).strip()
    return f"{noun}{int(text) - first + 1}" if text.isdigit() else ""


FORMATTERS: dict[str, Callable[[dict[str, Any]], Formatted]] = {
    "boolq": _boolq,
    "piqa": _piqa,
    "social_i_qa": _social_i_qa,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "arc_easy": partial(_lettered, "question"),
    "arc_challenge": partial(_lettered, "question"),
    "openbookqa": partial(_lettered, "question_stem"),
}
