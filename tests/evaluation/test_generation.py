"""Generated answers and choices against the same model asked one prompt, one choice and one token at a time."""

import pytest
import torch
from transformers import AutoTokenizer

from alloralib.errors import DataError, ModelError
from alloralib.evaluation.choice import choose, read_choice
from alloralib.evaluation.generation import encode_prompt, end_tokens, generate_answers

from ..adapters.models import gpt2, llama
from ..conftest import WORDS

PROMPTS = ["good film", "the actor was not very good and the plot is", "story", "a great film is", "music and"]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}actor{% endif %}"


@pytest.fixture
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def greedy(model, ids: list[int], ends: list[int], limit: int) -> list[int]:
    said: list[int] = []
    while len(said) < limit:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax())
        if token in ends:
            break
        said.append(token)
    return said


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_generated_answers(tokenizer, make, batch_size: int) -> None:
    model = make()
    done = []
    said = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=batch_size, tick=done.append)
    assert sum(done) == len(PROMPTS)
    for prompt, answer in zip(PROMPTS, said, strict=True):
        alone = greedy(model, tokenizer(prompt)["input_ids"], end_tokens(model, tokenizer), 6)
        assert answer == tokenizer.decode(alone, skip_special_tokens=True)


def test_generation_stops_at_the_end_of_the_turn(tokenizer) -> None:
    """The token that the model would say second is made the end of the assistant's turn."""
    model = llama()
    for word in WORDS:  # a random model may say one word for ever: take a prompt after which it does not
        free = greedy(model, tokenizer(word)["input_ids"], [], 6)
        if len(set(free)) > 1:
            break
    stop = next(token for token in free if token != free[0])
    model.generation_config.eos_token_id = [stop]
    (said,) = generate_answers(model, tokenizer, [word], max_new_tokens=6)
    assert said == tokenizer.decode(free[: free.index(stop)], skip_special_tokens=True)


def test_the_end_of_a_turn_is_read_off_the_template(tokenizer) -> None:
    model = llama()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = TEMPLATE.replace("</s>", "<|end|>")
    assert end_tokens(model, tokenizer) == sorted(
        {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>"), model.generation_config.eos_token_id}
    )


def test_sampling_follows_its_seed_and_leaves_the_global_generator_alone(tokenizer) -> None:
    model = llama()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    runs = [generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=3.0, seed=s) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_prompts(tokenizer) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        encode_prompt(tokenizer, [{"role": "user", "content": "good"}])
    with pytest.raises(DataError, match="no token"):
        encode_prompt(tokenizer, "")
    tokenizer.chat_template = TEMPLATE
    assert encode_prompt(tokenizer, [{"role": "user", "content": "good"}]) == tokenizer("user good</s>actor")["input_ids"]


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
    found = choose(model, tokenizer, PROMPTS, CHOICES, answers, batch_size=batch_size)
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
    found = choose(model, tokenizer, PROMPTS, CHOICES, [0, 1, 0, 2, 1], generate=True, max_new_tokens=5)
    said = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=5)
    assert [item["generated"] for item in found.items] == said
    assert [item["chosen_generated"] for item in found.items] == [
        read_choice(text, options) for text, options in zip(said, CHOICES, strict=True)
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
def test_reading_a_choice(text: str, choices: list[str], chosen) -> None:
    assert read_choice(text, choices) == chosen
