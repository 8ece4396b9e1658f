"""Conversations: formats, refusals, and on the real SmolLM2 tokenizer what of them is trained."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from alloralib.data.chat import IGNORED, ChatEncoder
from alloralib.data.conversations import Conversation, conversations
from alloralib.data.examples import build_examples
from alloralib.data.forms import Columns
from alloralib.data.table import Table, read_table
from alloralib.errors import DataError, ModelError
from alloralib.training.models import load_tokenizer, locate

FIXTURES = Path(__file__).parent / "fixtures"
COLUMNS = Columns.of("chat", {})
MARKED = (  # SmolLM2's template, and around what is trained the markers that transformers knows
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def smollm() -> Any:
    return load_tokenizer(locate("smollm2-135m"))


def with_template(tokenizer: Any, template: str | None, *special: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    if special:
        changed.add_special_tokens({"additional_special_tokens": list(special)})
    return changed


def talk(*turns: str) -> list[dict[str, Any]]:
    """Turns that begin with u:, a: or s:."""
    names = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": names[turn[0]], "content": turn[2:]} for turn in turns]


def trained(encoder: ChatEncoder, messages: list[dict[str, Any]]) -> str:
    _, labels = encoder(Conversation(messages), "here")
    return encoder.tokenizer.decode([label for label in labels if label != IGNORED])


# formats

EXPECTED = [
    talk("s:Be brief.", "u:Hi", "a:Hello there.", "u:2 + 2?", "a:4"),
    talk("u:Name a fruit.", "a:Apple.\nOr pear."),
]


@pytest.mark.parametrize("name", ["chat-openai.jsonl", "chat-sharegpt.jsonl", "chat-parts.jsonl", "chat.csv", "chat.parquet"])
def test_every_format_gives_the_same_conversations(name: str) -> None:
    assert [c.messages for c in conversations(read_table(str(FIXTURES / name)), "messages")] == EXPECTED


def test_reading_changes_nothing_in_the_table() -> None:
    table = read_table(str(FIXTURES / "chat-sharegpt.jsonl"))
    before = copy.deepcopy(table.columns)
    assert conversations(table, "messages") == conversations(table, "conversations")
    assert table.columns == before


MALFORMED: dict[str, tuple[Any, str]] = {
    "role": ([{"role": "asistant", "content": "a"}], r"message 1: unknown role 'asistant'[\s\S]*did you mean 'assistant'"),
    "from": ([{"from": "humman", "value": "a"}], r"unknown role 'humman'[\s\S]*'human'"),
    "no role": ([{"content": "a"}], "unknown role None"),
    "number": ([{"role": 3, "content": "a"}], "unknown role 3"),
    "empty": ([], "an empty conversation"),
    "no answer": (talk("s:a", "u:b"), "nothing to learn"),
    "silent": (talk("u:b", "a: \n"), "message 2: the assistant's message is empty"),
    "content": ([{"role": "user", "content": 3}], "content is not text but '3'"),
    "image": ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "is not text"),
    "text": ("hello", "conversation is not JSON"),
    "json": ('{"role": "user"}', "list of messages"),
    "half": ('[{"role": "assistant", "content": "\\ud83d"}]', "half of a surrogate pair"),
    "strings": (["hello"], "list of messages"),
    "none": (None, "list of messages"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_conversations_are_refused_with_their_row(case: str) -> None:
    cell, match = MALFORMED[case]
    table = Table("chat.jsonl", "0", {"messages": [talk("u:a", "a:b"), cell]}, [1, 2])
    with pytest.raises(DataError, match=match) as caught:
        conversations(table, "messages")
    assert "chat.jsonl, row 2 (line 2)" in str(caught.value)
    assert "remedy" in str(caught.value)


# what is trained


def test_answers_and_their_stop_token_are_trained_and_nothing_else(smollm) -> None:
    examples = build_examples("chat", Table("x", "0", {"messages": EXPECTED}), COLUMNS, processor=smollm, max_length=512)
    decoded = [smollm.decode([label for label in row["labels"] if label != IGNORED]) for row in examples]
    assert decoded == ["Hello there.<|im_end|>4<|im_end|>", "Apple.\nOr pear.<|im_end|>"]
    for row, messages in zip(examples, EXPECTED, strict=True):
        assert smollm.decode(row["input_ids"]) == smollm.apply_chat_template(messages, tokenize=False)
        assert row["input_ids"] == smollm.apply_chat_template(messages)["input_ids"]
        assert all(label in (IGNORED, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
    assert examples["row"][:] == [0, 1]


CONTENT = st.text(st.sampled_from("ab 1.\n?é🙂"), min_size=1, max_size=8)
ANSWER = CONTENT.filter(str.strip)
CHATS = st.tuples(st.none() | CONTENT, st.lists(st.tuples(CONTENT, ANSWER), min_size=1, max_size=3), st.none() | CONTENT)


@pytest.fixture(scope="module")
def twins(smollm) -> tuple[ChatEncoder, ChatEncoder]:
    """By difference, and by markers."""
    return ChatEncoder(smollm), ChatEncoder(with_template(smollm, MARKED))


@settings(max_examples=40)
@given(chat=CHATS)
def test_the_difference_equals_the_markers(twins, chat) -> None:
    system, turns, last = chat
    messages = talk(
        *([] if system is None else [f"s:{system}"]),
        *(turn for asked, answer in turns for turn in (f"u:{asked}", f"a:{answer}")),
        *([] if last is None else [f"u:{last}"]),
    )
    by_difference, by_markers = twins
    assert by_difference.template is None
    assert by_markers.template is not None
    assert by_difference(Conversation(messages), "here") == by_markers(Conversation(messages), "here")


def test_trls_trainer_labels_the_same_tokens(smollm, tmp_path) -> None:
    """The twin that users of TRL know: its trainer with `assistant_only_loss`, for a template with markers."""
    ours = build_examples("chat", Table("x", "0", {"messages": EXPECTED}), COLUMNS, processor=smollm, max_length=512)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(smollm), **shape))
    common = {"report_to": "none", "use_cpu": True, "bf16": False, "max_length": 512, "disable_tqdm": True}
    theirs, taken = (
        trl.SFTTrainer(
            model,
            args=trl.SFTConfig(str(tmp_path), assistant_only_loss=markers, **common),
            train_dataset=data,
            processing_class=with_template(smollm, MARKED) if markers else smollm,
        )
        for markers, data in ((True, datasets.Dataset.from_dict({"messages": EXPECTED})), (False, ours))
    )
    for column in ("input_ids", "labels"):
        assert ours[column][:] == theirs.train_dataset[column][:] == taken.train_dataset[column][:]
    batch = taken.data_collator([taken.train_dataset[0], taken.train_dataset[1]])
    assert (batch["labels"] != IGNORED).sum() == sum(label != IGNORED for row in ours["labels"] for label in row)


FOLDER = Path(trl.__file__).parent / "chat_templates"


def trls_template(tokenizer: Any, name: str, *special: str) -> Any:
    return with_template(tokenizer, (FOLDER / f"{name}.jinja").read_text(), *special)


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "gemma3", "lfm2"])
def test_the_difference_trains_what_trls_markers_train(smollm, name: str) -> None:
    """TRL's training version of a template marks the same tokens, but for white space that some of its markers include."""
    special = ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<end_of_turn>", "<start_of_turn>")
    plain = ChatEncoder(trls_template(smollm, name, *special))
    marked = ChatEncoder(trls_template(smollm, f"{name}_training", *special))
    assert plain.template is None
    assert marked.template is not None
    for messages in EXPECTED:
        ours, theirs = (encode(Conversation(messages), "here") for encode in (plain, marked))
        assert ours[0] == theirs[0]
        more = [b for a, b in zip(ours[1], theirs[1], strict=True) if a != b]
        assert all(label != IGNORED and not smollm.decode([label]).strip() for label in more)
    assert trained(plain, EXPECTED[1]).startswith("Apple.\nOr pear.<")


QWEN3 = ("<think>", "</think>")


@pytest.mark.parametrize(("name", "special"), [("qwen3", QWEN3), ("glm4moe", ("<|user|>", "<|assistant|>", *QWEN3))])
def test_trls_training_template_is_used_where_only_that_works(smollm, name: str, special: tuple[str, ...]) -> None:
    """Qwen 3 renders earlier answers differently once more follow; GLM 4 has no token of its own that ends a turn."""
    encoder = ChatEncoder(trls_template(smollm, name, *special))
    assert encoder.template == (FOLDER / f"{name}_training.jinja").read_text()
    assert "Apple.\nOr pear." in trained(encoder, EXPECTED[1])


@pytest.mark.parametrize(("name", "special"), [("qwen3", QWEN3), ("glm4moe", ("<|user|>", "<|assistant|>", *QWEN3))])
def test_without_trl_such_a_template_is_refused(smollm, name: str, special: tuple[str, ...], monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "trl.chat_template_utils", None)
    with pytest.raises(ModelError, match=r"cannot be told from this chat template[\s\S]*pip install alloralib\[trl\]"):
        ChatEncoder(trls_template(smollm, name, *special))


@pytest.mark.parametrize("name", ["own", "marked", "llama3"])
def test_the_tokens_do_not_depend_on_whether_trl_is_installed(smollm, name: str, monkeypatch) -> None:
    special = ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
    template = {"own": smollm.chat_template, "marked": MARKED, "llama3": (FOLDER / "llama3.jinja").read_text()}[name]
    tokenizer = with_template(smollm, template, *special)
    expected = [ChatEncoder(tokenizer)(Conversation(messages), "here") for messages in EXPECTED]
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setitem(sys.modules, "trl.chat_template_utils", None)
    assert [ChatEncoder(tokenizer)(Conversation(messages), "here") for messages in EXPECTED] == expected


def test_markers_that_leave_out_the_stop_token_are_not_used(smollm) -> None:
    template = MARKED.replace("'<|im_end|>' }}{% endgeneration %}", "'' }}{% endgeneration %}{{ '<|im_end|>' }}")
    encoder = ChatEncoder(with_template(smollm, template))
    assert encoder.template is None
    assert trained(encoder, EXPECTED[1]) == "Apple.\nOr pear.<|im_end|>"


def test_a_turn_without_a_stop_token_is_trained_to_its_end(smollm) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    assert trained(ChatEncoder(with_template(smollm, template)), talk("u:Hi", "a:Yes")) == "Yes\n"


def test_a_template_that_is_not_prefix_preserving_is_refused(smollm) -> None:
    template = "{{ messages | length }}" + MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    with pytest.raises(ModelError, match=r"not prefix-preserving[\s\S]*generation"):
        ChatEncoder(with_template(smollm, template))(Conversation(EXPECTED[0]), "here")


def test_a_row_on_which_the_template_is_not_prefix_preserving_is_refused(smollm) -> None:
    """What the probe of the template does not show, a conversation with a system message here, its row does."""
    template = "{% if messages[0]['role'] == 'system' %}{{ messages | length }}{% endif %}"
    template += MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    encoder = ChatEncoder(with_template(smollm, template))
    assert encoder.template is None
    with pytest.raises(ModelError, match=r"row 1: the chat template is not prefix-preserving"):
        encoder(Conversation(EXPECTED[0]), "row 1")


def test_a_tokenizer_without_a_template_is_refused(smollm) -> None:
    with pytest.raises(ModelError, match=r"no chat template[\s\S]*--task causal-lm"):
        ChatEncoder(with_template(smollm, None))


def test_a_conversation_that_the_template_refuses_is_named(smollm) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + MARKED
    table = Table("x", "0", {"messages": [EXPECTED[1], EXPECTED[0]]})
    with pytest.raises(DataError, match="x, row 2: the chat template refuses the conversation: no system here"):
        build_examples("chat", table, COLUMNS, processor=with_template(smollm, template))


def test_rows_cut_before_their_answer_are_refused(smollm) -> None:
    table = Table("x", "0", {"messages": [EXPECTED[1], *[talk(f"u:{'word ' * 60}", "a:b")] * 2]})
    assert len(build_examples("chat", table, COLUMNS, processor=smollm)["input_ids"][1]) > 60
    with pytest.raises(DataError, match=r"x, row 2: no trained token[\s\S]*x, row 3[\s\S]*--max-length"):
        build_examples("chat", table, COLUMNS, processor=smollm, max_length=60)
    cut = build_examples("chat", table.take([0]), COLUMNS, processor=smollm, max_length=38)
    assert len(cut[0]["input_ids"]) == len(cut[0]["labels"]) == 38
    assert smollm.decode([label for label in cut[0]["labels"] if label != IGNORED]) == "Apple.\nOr"


def test_conversations_in_a_cell_are_json(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('messages\n"[{""role"": ""user"", ""content"": ""a""}"\n')
    with pytest.raises(DataError, match=r"row 1 \(line 2\).*not JSON"):
        conversations(read_table(str(path)), "messages")
    assert json.loads((FIXTURES / "chat-openai.jsonl").read_text().splitlines()[0])["messages"] == EXPECTED[0]
