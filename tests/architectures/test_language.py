"""Scores of choices and generated answers against a plain forward pass per row, for every language model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alloralib.evaluation.choice import evaluate_choices
from alloralib.evaluation.generation import generate_answers

from .models import LANGUAGE_MODELS, save_model

PROMPTS = ["the film was", "a", "the plot was poor and the actor is"]
CHOICES = [["good", "bad film", "a"], ["story", "b"], ["awful music in the end", "great"]]


@pytest.fixture(params=LANGUAGE_MODELS)
def loaded(request, tmp_path):
    directory = save_model(LANGUAGE_MODELS[request.param], tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(directory).eval(), tokenizer


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_choice_has_the_log_probability_of_its_tokens_after_the_prompt(loaded, batch_size: int) -> None:
    """Prompts are longer and shorter than a sliding window, and so are the choices."""
    model, tokenizer = loaded
    found = evaluate_choices(model, tokenizer, PROMPTS, CHOICES, [0, 0, 0], batch_size=batch_size)
    for prompt, choices, item in zip(PROMPTS, CHOICES, found.items, strict=True):
        start = len(tokenizer(prompt)["input_ids"])
        for choice, score in zip(choices, item["log_probabilities"], strict=True):
            ids = torch.tensor([tokenizer(f"{prompt} {choice}")["input_ids"]])
            with torch.no_grad():
                log = model(ids, use_cache=False).logits.log_softmax(dim=-1)[0]
            expected = sum(log[t - 1, ids[0, t]] for t in range(start, ids.shape[1]))
            assert score == pytest.approx(float(expected), rel=1e-4), choice


def test_a_batch_of_prompts_is_answered_as_each_prompt_alone(loaded) -> None:
    model, tokenizer = loaded
    found = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=3)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        start = ids.shape[1]
        for _ in range(12):
            with torch.no_grad():
                best = model(ids, use_cache=False).logits[0, -1].argmax()
            if best == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, best.view(1, 1)], dim=1)
        assert answer == tokenizer.decode(ids[0, start:], skip_special_tokens=True)
