"""Choices by likelihood and by generation against the same model, one prompt, one choice and one token at a time."""

import pytest
import torch
from transformers import AutoTokenizer

from alloralib.evaluation.choice import evaluate_choices, read_choice
from alloralib.evaluation.generation import generate_answers

from ..adapters.models import gpt2, llama
from .test_generation import PROMPTS


@pytest.fixture
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


CHOICES = [["good", "bad"], ["fine", "very awful", "good and great"], ["film"], ["bad", "poor music", "a"], ["the", "is not"]]


def brute(model, tokenizer, prompt: str, choice: str) -> tuple[float, int]:
    ids = tokenizer(f"{prompt} {choice}")["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logp[t - 1, ids[t]].item() for t in range(start, len(ids))), len(ids) - start


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_choices_by_likelihood(tokenizer, make, batch_size: int) -> None:
    model, answers = make(), [0, 1, 0, 2, 1]
    found = evaluate_choices(model, tokenizer, PROMPTS, CHOICES, answers, batch_size=batch_size)
    right = per_token = 0
    for prompt, options, answer, item in zip(PROMPTS, CHOICES, answers, found.items, strict=True):
        scores = [brute(model, tokenizer, prompt, choice) for choice in options]
        assert item["log_probabilities"] == pytest.approx([s for s, _ in scores], abs=1e-4)
        right += max(range(len(scores)), key=lambda i: scores[i][0]) == answer
        per_token += max(range(len(scores)), key=lambda i: scores[i][0] / scores[i][1]) == answer
    assert found.metrics["accuracy"] == right / 5
    assert found.metrics["accuracy_per_token"] == per_token / 5
    assert found.metrics["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 + 1 / 3 + 1 / 2) / 5)


def test_choices_by_generation(tokenizer) -> None:
    model = llama()
    found = evaluate_choices(model, tokenizer, PROMPTS, CHOICES, [0, 1, 0, 2, 1], generate=True, max_new_tokens=5)
    answers = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=5)
    assert [item["generated"] for item in found.items] == answers
    assert [item["chosen_generated"] for item in found.items] == [
        read_choice(text, options) for text, options in zip(answers, CHOICES, strict=True)
    ]
    assert 0 <= found.metrics["accuracy_generated"] <= found.metrics["accuracy_generated_high"]


@pytest.mark.parametrize(
    ("text", "choices", "chosen"),
    [
        ("answer10, not answer1", ["answer1", "answer10"], 1),
        ("It is untrue; false.", ["true", "false"], 1),
        ("the correct answer is the correct answer is B", ["the correct answer is A", "the correct answer is B"], 1),
        ("New York City", ["New York", "New York City"], 1),
        ("ANSWER3\nanswer1", ["answer1", "answer2", "answer3"], 2),
        ("", ["a", "b"], None),
    ],
)
def test_the_choice_that_an_answer_names(text: str, choices: list[str], chosen) -> None:
    assert read_choice(text, choices) == chosen
