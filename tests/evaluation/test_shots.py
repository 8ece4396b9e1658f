"""Examples in the prompts of test rows: what is shown, and that the same tokens count as without them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alloralib.data.examples import build_examples, collator
from alloralib.data.forms import Columns, Kind
from alloralib.data.language import IGNORED
from alloralib.data.table import Table
from alloralib.evaluation.evaluate import EvaluationData, evaluate_examples
from alloralib.evaluation.limits import limits_of
from alloralib.evaluation.shots import NoShots, Shots, make_shots
from alloralib.training.models import load_tokenizer, locate

from ..adapters.models import llama
from ..conftest import WORDS
from ..tiny import word_level
from ..trained import CHAT_TEMPLATE

COMPLETIONS = Columns(prompt="prompt", completion="completion")
CHOICES = Columns(prompt="prompt", choices="choices", answer="answer")
MESSAGES = Columns(messages="messages")


@pytest.fixture(scope="module")
def words(tiny_llama) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def smollm() -> Any:
    tokenizer = load_tokenizer(locate("smollm2-135m"))
    assert tokenizer.chat_template
    return tokenizer


def table(rows: list[dict[str, Any]]) -> Table:
    return Table("rows", "", {name: [row[name] for row in rows] for name in rows[0]})


def pairs(texts: list[str]) -> Table:
    return table([{"prompt": f"{text} is", "completion": " good" if i % 2 else " bad"} for i, text in enumerate(texts)])


def talks(texts: list[str], *, system: str | None = None) -> Table:
    first = [] if system is None else [{"role": "system", "content": system}]
    return table([
        {"messages": [*first, {"role": "user", "content": text}, {"role": "assistant", "content": "good" if i % 2 else "bad"}]}
        for i, text in enumerate(texts)
    ])  # fmt: skip


def asked(texts: list[str]) -> Table:
    return table([{"prompt": f"{text} is", "choices": ["bad", "very good"], "answer": i % 2} for i, text in enumerate(texts)])


TRAIN = ["the film", "a story", "the plot", "an actor", "the music", "a scene"]
TEST = ["the ending", "a great plot", "very poor music"]
KINDS: dict[Kind, tuple[Table, Table, Columns]] = {
    "causal-lm": (pairs(TRAIN), pairs(TEST), COMPLETIONS),
    "multiple-choice": (asked(TRAIN), asked(TEST), CHOICES),
    "chat": (talks(TRAIN), talks(TEST, system="very fine"), MESSAGES),
}


def shots(kind: Kind, tokenizer: Any, *, parts: Any = None, max_length: int = 512, **settings) -> tuple[Shots, Any]:
    """With examples, and without."""
    train, test, columns = parts or KINDS[kind]
    plain = build_examples(kind, test, columns, processor=tokenizer, max_length=max_length)
    given = {"max_length": max_length, "limits": limits_of(llama())._replace(tokens=len(tokenizer)), "seed": 0} | settings
    return make_shots(kind, train, test, columns, tokenizer, plain, **given), plain


def scored(rows: Any) -> list[list[int]]:
    return [[label for label in labels[1:] if label != IGNORED] for labels in rows["labels"]]


def evaluated(kind: Kind, model: Any, tokenizer: Any, rows: Any, prompts: Any = None) -> Any:
    _, test, columns = KINDS[kind]
    data = EvaluationData(kind, test, columns, rows, collator(kind, tokenizer), None, prompts)
    return evaluate_examples(data, model, tokenizer, batch_size=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["words", "smollm"])
def test_the_same_tokens_count_as_without_examples(kind: Kind, which: str, request) -> None:
    tokenizer = request.getfixturevalue(which)
    found, plain = shots(kind, tokenizer)
    assert found.counts == [4, 4, 4]
    assert scored(found.rows) == scored(plain)
    for ids, labels, own in zip(found.rows["input_ids"], found.rows["labels"], plain["input_ids"], strict=True):
        assert len(ids) == len(labels) > len(own)
        assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_without_examples_the_metrics_are_those_of_the_model_alone(words, kind: Kind) -> None:
    found, plain = shots(kind, words, count=0)
    model = llama()
    assert evaluated(kind, model, words, found.rows, found.prompts) == evaluated(kind, model, words, plain)
    with_four = shots(kind, words)[0]
    changed = evaluated(kind, model, words, with_four.rows, with_four.prompts).metrics
    assert changed["loss"] != evaluated(kind, model, words, plain).metrics["loss"]
    assert changed["tokens"] == evaluated(kind, model, words, plain).metrics["tokens"]


def test_the_text_of_a_prompt_with_examples(smollm) -> None:
    found, _ = shots("causal-lm", smollm, count=2)
    first, second = (pairs(TRAIN).take([row]).columns for row in found.examples)
    end = smollm.eos_token
    expected = "".join(f"{row['prompt'][0]}{row['completion'][0]}{end}\n\n" for row in (first, second))
    assert smollm.decode(found.rows[0]["input_ids"]) == f"{expected}the ending is bad{end}"
    assert found.rows[0]["input_ids"] == smollm(f"{expected}the ending is bad{end}")["input_ids"]


def test_a_choice_is_scored_behind_the_examples(smollm) -> None:
    """The right choices stand in the examples, and the prompt of the row ends the tokens that are read."""
    found, _ = shots("multiple-choice", smollm, count=1)
    train = asked(TRAIN).take(found.examples).columns
    example = f"{train['prompt'][0]} {train['choices'][0][train['answer'][0]]}{smollm.eos_token}\n\n"
    assert found.prompts is not None
    assert [smollm.decode(ids) for ids in found.prompts] == [f"{example}{text} is" for text in TEST]


def test_the_likelihood_of_choices_behind_examples_is_that_of_the_joint_tokens(words) -> None:
    found, _ = shots("multiple-choice", words)
    assert found.prompts is not None
    model = llama()
    behind = evaluated("multiple-choice", model, words, found.rows, found.prompts).items
    for prompt, item in zip(found.prompts, behind, strict=True):
        for choice, score in zip([["bad"], ["very", "good"]], item["log_probabilities"], strict=True):
            ids = prompt + words.convert_tokens_to_ids(choice)
            with torch.no_grad():
                logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            assert score == pytest.approx(sum(logp[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))), abs=1e-4)


def test_earlier_turns_of_a_conversation(smollm) -> None:
    found, _ = shots("chat", smollm, count=1)
    (example,) = talks(TRAIN).take(found.examples).columns["messages"]
    conversation = [{"role": "system", "content": "very fine"}, *example, *talks(TEST).columns["messages"][0]]
    assert smollm.decode(found.rows[0]["input_ids"]) == smollm.apply_chat_template(conversation, tokenize=False)
    assert smollm.decode(scored(found.rows)[0]) == "bad<|im_end|>"


@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_training_rows_and_the_same_for_every_row(smollm, kind: Kind) -> None:
    found, _ = shots(kind, smollm)
    assert len(set(found.examples)) == 4
    assert found.examples == shots(kind, smollm)[0].examples
    assert found.examples != shots(kind, smollm, seed=1)[0].examples
    prompts = "user\n{}<" if kind == "chat" else "{} is"
    texts = map(smollm.decode, found.rows["input_ids"])
    shown = {text.rpartition(prompts.format(own))[0] for text, own in zip(texts, TEST, strict=True)}
    assert len(shown) == 1
    (text,) = shown
    places = [text.index(prompts.format(TRAIN[row])) for row in found.examples]
    assert places == sorted(places)
    assert not any(prompts.format(own) in text for own in TEST if own not in TRAIN)


def test_the_token_in_front_stays_in_front(words) -> None:
    """Of a tokenizer that begins every text with a token, that token is not repeated before the row's own prompt."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_level(["<s>", *WORDS])
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    for kind in ("causal-lm", "multiple-choice"):
        found, plain = shots(kind, tokenizer)
        assert all(row[0] == begin for row in plain["input_ids"])
        for row in [*found.rows["input_ids"], *(found.prompts or [])]:
            assert row[0] == begin
            assert row.count(begin) == 1
        assert scored(found.rows) == scored(plain)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(max_length=st.integers(24, 60))
def test_a_row_without_room_has_fewer_examples(words, kind: Kind, max_length: int) -> None:
    found, plain = shots(kind, words, max_length=max_length)
    assert scored(found.rows) == scored(plain)
    for row, own, count in zip(found.rows["input_ids"], plain["input_ids"], found.counts, strict=True):
        assert len(row) <= max_length
        assert (count == 0) == (row == own)
    all_of_them, _ = shots(kind, words)
    for shown, row, count in zip(all_of_them.rows["input_ids"], found.rows["input_ids"], found.counts, strict=True):
        if count == 4:
            assert row == shown


def test_examples_in_front_are_left_out_first(words) -> None:
    found, plain = shots("causal-lm", words, max_length=20)
    assert 0 < max(found.counts) < 4
    last = pairs(TRAIN).take(found.examples[-1:]).columns["prompt"][0]
    for ids, own in zip(found.rows["input_ids"], plain["input_ids"], strict=True):
        before = words.decode(ids[: len(ids) - len(own)])
        assert last in before
    assert pairs(TRAIN).take(found.examples[:1]).columns["prompt"][0] not in words.decode(found.rows[0]["input_ids"])


def test_a_conversation_with_tools_or_out_of_turn_is_no_example(words) -> None:
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "plot", "arguments": "{}"}}]}
    odd = [
        [{"role": "assistant", "content": "good"}],
        [{"role": "user", "content": "film"}, {"role": "user", "content": "plot"}, {"role": "assistant", "content": "bad"}],
        [{"role": "user", "content": "film"}, call],
    ]
    fine = talks(["the plot"]).columns["messages"]
    test = talks(TEST)
    found, _ = shots("chat", words, parts=(table([{"messages": m} for m in [*odd, *fine]]), test, MESSAGES))
    assert found.examples == [3]
    with pytest.raises(NoShots, match="no training row"):
        shots("chat", words, parts=(table([{"messages": m} for m in odd]), test, MESSAGES))


def test_a_template_that_takes_no_earlier_turns_has_no_examples(words) -> None:
    once = AutoTokenizer.from_pretrained(words.name_or_path)
    once.chat_template = "{% if messages|length > 3 %}{{ raise_exception('one question only') }}{% endif %}" + CHAT_TEMPLATE
    parts = talks(TRAIN), talks(TEST), MESSAGES
    with pytest.raises(NoShots, match="one question only"):
        shots("chat", once, parts=parts)


def test_an_answer_that_is_written_otherwise_behind_earlier_turns_is_not_compared(words) -> None:
    other = AutoTokenizer.from_pretrained(words.name_or_path)
    other.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
        "{% if messages|length > 5 %}{{ ' very' }}{% endif %}{{ ' </s> ' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + ' </s> ' }}{% endif %}{% endfor %}"
    )
    with pytest.raises(NoShots, match="otherwise"):
        shots("chat", other, parts=(talks(TRAIN), talks(TEST), MESSAGES))


def test_the_longest_choice_has_room_too(words) -> None:
    longest = "very " * 9 + "good"
    test = table([{"prompt": "the film is", "choices": ["bad", longest], "answer": "bad"}])
    for max_length in range(20, 40):
        found, _ = shots("multiple-choice", words, parts=(asked(TRAIN), test, CHOICES), max_length=max_length)
        assert found.prompts is not None
        assert len(found.prompts[0]) + 10 <= max_length
    assert found.counts == [4]


def test_a_first_token_that_does_not_count_alone_does_not_count_behind_examples(smollm) -> None:
    """The prompt and its completion are one token, and without examples nothing comes before it."""
    test = table([{"prompt": "a", "completion": "bout"}])
    found, plain = shots("causal-lm", smollm, parts=(pairs(TRAIN), test, COMPLETIONS))
    assert plain["labels"][0][0] != IGNORED
    assert scored(found.rows) == scored(plain) == [[smollm.eos_token_id]]


@pytest.mark.parametrize(("untrained", "counts"), [(0, "good"), (1, "bad")])
def test_an_answer_of_weight_0_does_not_count_behind_examples(smollm, untrained: int, counts: str) -> None:
    turns = talks(["the film", "a plot"]).columns["messages"]
    turns[untrained][-1]["weight"] = 0
    found, plain = shots("chat", smollm, parts=(talks(TRAIN), table([{"messages": [*turns[0], *turns[1]]}]), MESSAGES))
    assert found.counts == [4]
    assert scored(found.rows) == scored(plain)
    assert smollm.decode(scored(plain)[0]) == f"{counts}<|im_end|>"
