"""Generated answers against the same model, one prompt and one token at a time."""

import pytest
import torch
from transformers import AutoTokenizer

from alloralib.errors import DataError, ModelError
from alloralib.evaluation.generation import encode_prompt, end_tokens, generate_answers

from ..adapters.models import gpt2, llama
from ..conftest import WORDS

PROMPTS = ["good film", "the actor was not very good and the plot is", "story", "a great film is", "music and"]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}actor{% endif %}"


@pytest.fixture
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def greedy(model, ids: list[int], ends: list[int], limit: int) -> list[int]:
    answers: list[int] = []
    while len(answers) < limit:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + answers])).logits[0, -1].argmax())
        if token in ends:
            break
        answers.append(token)
    return answers


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_generated_answers(tokenizer, make, batch_size: int) -> None:
    model = make()
    done = []
    answers = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=batch_size, progress=done.append)
    assert sum(done) == len(PROMPTS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        alone = greedy(model, tokenizer(prompt)["input_ids"], end_tokens(model, tokenizer), 6)
        assert answer == tokenizer.decode(alone, skip_special_tokens=True)


def test_generation_stops_at_the_end_of_the_turn(tokenizer) -> None:
    """The second token of the model's answer is made the token that ends the turn."""
    model = llama()
    for word in WORDS:  # a random model may repeat one word: find a prompt after which it does not
        free = greedy(model, tokenizer(word)["input_ids"], [], 6)
        if len(set(free)) > 1:
            break
    stop = next(token for token in free if token != free[0])
    model.generation_config.eos_token_id = [stop]
    (answers,) = generate_answers(model, tokenizer, [word], max_new_tokens=6)
    assert answers == tokenizer.decode(free[: free.index(stop)], skip_special_tokens=True)


def test_the_token_that_ends_a_turn_is_found_in_the_template(tokenizer) -> None:
    model = llama()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = TEMPLATE.replace("</s>", "<|end|>")
    assert end_tokens(model, tokenizer) == sorted(
        {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>"), model.generation_config.eos_token_id}
    )


def test_sampling_depends_on_its_seed_and_not_on_the_global_generator(tokenizer) -> None:
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
