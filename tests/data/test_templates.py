"""Chat templates: what they want, what they leave out, and that every one is trained as it is asked.

The templates are those that TRL ships, as their models have them, and a few whose ways TRL's do not have.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import trl

from alloralib.data.chat import IGNORED, ChatEncoder, special_tokens_in_text
from alloralib.data.conversations import Conversation
from alloralib.data.examples import build_examples
from alloralib.data.forms import Columns
from alloralib.data.stops import stops
from alloralib.data.table import Table
from alloralib.data.templates import ChatTemplate, dated, reads_clock, set_date
from alloralib.errors import DataError
from alloralib.evaluation.generation import encode_prompt
from alloralib.training.models import load_tokenizer, locate

FOLDER = Path(trl.__file__).parent / "chat_templates"
IMAGES = ("idefics3", "smolvlm", "llava_next")  # they take the content as a list of parts
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training") and path.stem not in IMAGES)
CALLING = [  # those that take tools
    *("diffusion_gemma", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "glm4moe", "gptoss"),
    *("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "lfm2_v2", "llama3_1", "llama3_2", "muse_glimmer", "nemotron_3_5_lightning"),
    *("nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "qwen2_5", "qwen3", "qwen3_5_nothink", "qwen3_5_think"),
    *("qwen3_6", "qwen3_8", "qwen3_instruct_2507", "qwen3_vl"),
]
SPECIAL = re.compile(r"<[|\uff5c][^<>\s'\"{}]+[|\uff5c]>|</?[a-z_]*(?:turn|tool_[a-z]+|think)>|<[a-z_]+\|>|<\|[a-z_]+>")
SCHEMA = {
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "a"}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": SCHEMA}]
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def smollm() -> Any:
    return load_tokenizer(locate("smollm2-135m"))


def with_template(tokenizer: Any, template: str) -> Any:
    """The tokenizer with that template, which knows the template's special tokens."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    changed.add_special_tokens({"additional_special_tokens": sorted(set(SPECIAL.findall(template)))})
    return changed


def trls(tokenizer: Any, name: str) -> Any:
    return with_template(tokenizer, (FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def calling(arguments: Any = '{"city": "Paris"}') -> Conversation:
    call = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    result = {"role": "tool", "content": "17 C", "name": "weather", "tool_call_id": "call00001"}
    messages = [user("Weather in Paris?"), answer("") | {"tool_calls": [call]}, result, answer("It is 17.")]
    return Conversation(messages, TOOLS)


TALK = Conversation([user("Hi there"), answer("Answer one."), user("Go on"), answer("Two words.")])


def spans(tokenizer: Any, encoded: tuple[list[int], list[int]]) -> list[str]:
    """The trained texts, one for each run of trained tokens."""
    found: list[list[int]] = [[]]
    for label in encoded[1]:
        if label != IGNORED:
            found[-1].append(label)
        elif found[-1]:
            found.append([])
    return [tokenizer.decode(ids) for ids in found if ids]


# every template


@pytest.mark.parametrize("name", NAMES)
def test_a_row_begins_with_the_tokens_of_its_prompt_and_ends_with_a_stop_token(smollm, name: str) -> None:
    """At every answer of a conversation: what is asked in `evaluate` and `generate` is what training has before the answer.

    An answer that is the last is trained to a token at which generation stops. TRL's template for gpt-oss begins what is
    trained before the prompt ends; all others at the answer.
    """
    tokenizer = trls(smollm, name)
    encode, ends = ChatEncoder(tokenizer), stops(tokenizer, "chat")
    assert ends.text == ""
    for conversation in (TALK, calling()):
        if conversation is not TALK and name not in CALLING:
            with pytest.raises(DataError, match=r"leaves out|tools|must alternate"):
                encode(conversation, "row 1")
            continue
        for i, message in enumerate(conversation.messages):
            if message["role"] != "assistant":
                continue
            ids, labels = encode(conversation.up_to(i + 1), "row 1")
            prompt = encode_prompt(tokenizer, conversation.up_to(i))
            if "gemma" not in name or conversation is TALK:  # after a tool's result Gemma 4 is asked without a header
                assert ids[: len(prompt)] == prompt
            trained = [label for label in labels if label != IGNORED and tokenizer.decode([label]).strip()]
            assert trained[-1] in ends.tokens, tokenizer.decode(trained)
            assert len(ids) > len(prompt)


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_trained_with_its_end_and_nothing_of_the_user(smollm, name: str) -> None:
    tokenizer = trls(smollm, name)
    one, two = spans(tokenizer, ChatEncoder(tokenizer)(TALK, "row 1"))
    assert "Answer one." in one
    assert "Two words." in two
    assert not re.search(r"Hi there|Go on", one + two)
    assert one.strip() != "Answer one."  # something ends it


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_of_weight_0_is_the_only_thing_that_is_masked(smollm, name: str) -> None:
    encode = ChatEncoder(trls(smollm, name))
    ids, labels = encode(TALK, "row 1")
    for turn in (1, 3):
        others = Conversation(TALK.messages, None, frozenset({turn}))
        assert encode(others, "row 1")[0] == ids
        kept = encode(others, "row 1")[1]
        assert all(label in (IGNORED, whole) for label, whole in zip(kept, labels, strict=True))
        (left,) = spans(encode.tokenizer, (ids, kept))
        assert ("Two words." if turn == 1 else "Answer one.") in left
        assert ("Answer" if turn == 1 else "Two") not in left


@pytest.mark.parametrize("name", CALLING)
def test_arguments_as_text_and_as_a_mapping_are_learnt_alike(smollm, name: str) -> None:
    """Whatever the template wants: JSON text is never learnt as a string in a string, a mapping never as Python writes it."""
    tokenizer = trls(smollm, name)
    encode = ChatEncoder(tokenizer)
    text = encode(calling('{"city": "Paris"}'), "row 1")
    assert text == encode(calling({"city": "Paris"}), "row 1")
    said = spans(tokenizer, text)[0]
    assert "Paris" in said
    assert '\\"' not in said
    assert "{'" not in said
    assert "{{" not in said


# what a template wants


def test_arguments_stay_text_where_the_template_writes_them_as_they_are(smollm) -> None:
    """As DeepSeek's do, which add them to a string. The text is learnt as it was written, with its own spaces."""
    written = "m.content + (m.tool_calls[0].function.name + m.tool_calls[0].function.arguments if m.tool_calls else '')"
    tokenizer = with_template(smollm, CHATML.replace("m.content", written))
    for arguments, text in (('{"city":   "Paris"}', '{"city":   "Paris"}'), ({"city": "Orléans"}, '{"city": "Orléans"}')):
        ids, _ = ChatEncoder(tokenizer)(Conversation(calling(arguments).messages), "")
        assert text in tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("name", "role"),
    [("gptoss", "developer"), ("qwen2_5", "system"), ("llama3_1", "system"), ("gemma3", "system"), ("phi3", "system")],
)
def test_developer_is_system_where_the_template_does_not_know_it(smollm, name: str, role: str) -> None:
    chat = ChatTemplate(trls(smollm, name))
    first, same = ({"role": kind, "content": "Be brief."} for kind in ("developer", role))
    assert chat.encode(Conversation([first, *TALK.messages]), "") == chat.encode(Conversation([same, *TALK.messages]), "")
    assert "Be brief." in chat.tokenizer.decode(chat.encode(Conversation([first, *TALK.messages]), "").ids)


# what a template leaves out


@pytest.mark.parametrize("name", ["llama3", "phi3", "gemma3", "deepseekv3", "smollm"])
def test_tools_that_the_template_ignores_are_refused(smollm, name: str) -> None:
    tokenizer = smollm if name == "smollm" else trls(smollm, name)
    with pytest.raises(
        DataError, match=r"row 1: the chat template refuses .*does not show tools[\s\S]*remove the column 'tools'"
    ):
        ChatEncoder(tokenizer)(Conversation(TALK.messages, TOOLS), "row 1")
    with pytest.raises(DataError, match=r"prompt 1: the chat template refuses .*does not show tools"):
        encode_prompt(tokenizer, {"prompt": "Hi", "tools": TOOLS}, where="prompt 1")


def test_messages_that_the_template_leaves_out_are_refused(smollm) -> None:
    """Phi 3 ignores the results of tools, LFM 2 tool calls (though it names the tool), Llama 3 what the model thought."""
    results = Conversation([user("Hi"), {"role": "tool", "content": "17 C"}, answer("It is 17.")])
    with pytest.raises(DataError, match=r"leaves out message 2 \(role tool\)[\s\S]*use a model whose"):
        ChatEncoder(trls(smollm, "phi3"))(results, "row 1")
    with pytest.raises(DataError, match="leaves out the tool call of message 2"):
        ChatEncoder(trls(smollm, "lfm2"))(calling(), "row 1")
    thought = answer("4") | {"reasoning_content": "2 and 2"}
    with pytest.raises(DataError, match="leaves out the reasoning_content of message 2"):
        ChatEncoder(trls(smollm, "llama3"))(Conversation([user("2 + 2?"), thought]), "row 1")
    shortened = with_template(smollm, CHATML.replace("m.content", "m.content.split('</think>')[-1]"))
    with pytest.raises(DataError, match="leaves out the <think> of message 2"):
        ChatEncoder(shortened)(Conversation([user("2 + 2?"), answer("<think>2 and 2</think>4")]), "row 1")


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "gptoss"])
def test_reasoning_reaches_the_template(smollm, name: str, key: str) -> None:
    tokenizer = trls(smollm, name)
    (said,) = spans(tokenizer, ChatEncoder(tokenizer)(Conversation([user("2 + 2?"), answer("4") | {key: "2 and 2"}]), ""))
    assert said.index("2 and 2") < said.rindex("4")


def test_text_that_the_template_changes_is_not_left_out(smollm) -> None:
    """Llama 3.1 writes the results of tools as JSON, so that quotes are escaped."""
    conversation = calling()
    conversation.messages[2] = conversation.messages[2] | {"content": '{"degrees": "17"}'}
    tokenizer = trls(smollm, "llama3_1")
    assert '\\"degrees\\"' in tokenizer.decode(ChatEncoder(tokenizer)(conversation, "row 1")[0])


def test_a_template_without_a_system_role(smollm) -> None:
    for tokenizer in (trls(smollm, "gemma"), with_template(smollm, MISTRAL)):
        system = [{"role": "system", "content": "Be brief."}, user("Hi")]
        match = r"the chat template refuses[\s\S]*no system message here[\s\S]*remedy: leave out the system text"
        with pytest.raises(DataError, match=rf"row 1: {match}"):
            ChatEncoder(tokenizer)(Conversation([*system, answer("Yes")]), "row 1")
        with pytest.raises(DataError, match=rf"prompt 3: {match}"):
            encode_prompt(tokenizer, system, where="prompt 3")


def test_roles_that_must_alternate(smollm) -> None:
    twice = Conversation([user("Hi"), user("there"), answer("Yes")])
    with pytest.raises(DataError, match=r"row 1: .*roles must alternate[\s\S]*correct the order of the roles"):
        ChatEncoder(with_template(smollm, MISTRAL))(twice, "row 1")


def test_a_conversation_that_begins_with_an_answer(smollm) -> None:
    """As many of ShareGPT's do. Qwen 2.5 looks at the first message, and cannot be asked for one before there is any."""
    greeted = Conversation([answer("Welcome."), user("Hi"), answer("Yes.")])
    tokenizer = with_template(smollm, CHATML)
    assert spans(tokenizer, ChatEncoder(tokenizer)(greeted, "")) == ["Welcome.<|im_end|>", "Yes.<|im_end|>"]
    tokenizer = trls(smollm, "qwen2_5")
    with pytest.raises(DataError, match=r"row 1: the conversation begins with an answer[\s\S]*weight 0"):
        ChatEncoder(tokenizer)(greeted, "row 1")
    greeted = Conversation(greeted.messages, None, frozenset({0}))
    assert spans(tokenizer, ChatEncoder(tokenizer)(greeted, "")) == ["Yes.<|im_end|>"]


def test_an_answer_that_the_user_says_too_is_found_in_its_place(smollm) -> None:
    """Not by searching for its text."""
    tokenizer = trls(smollm, "qwen2_5")
    ids, labels = ChatEncoder(tokenizer)(Conversation([user("Say Yes"), answer("Yes"), user("Yes"), answer("Yes")]), "")
    assert spans(tokenizer, (ids, labels)) == ["Yes<|im_end|>"] * 2
    assert tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label == IGNORED]).count("Yes") == 2


@pytest.mark.parametrize("name", IMAGES)
def test_templates_that_take_no_plain_text_are_refused(smollm, name: str) -> None:
    """They render nothing of it, or raise."""
    with pytest.raises(DataError, match=r"row 1: .*(leaves out message 1|has no attribute)"):
        ChatEncoder(trls(smollm, name))(TALK, "row 1")


# special tokens in texts


def test_a_special_token_in_a_text_does_not_end_the_turn(smollm) -> None:
    tokenizer = with_template(smollm, CHATML)
    said = "It is <|im_end|> here, and </s>"
    talk = [user("What ends a turn, <|im_end|>?"), answer(said), user("<|im_end|>"), answer("Yes <|im_end|>")]
    first, second = spans(tokenizer, ChatEncoder(tokenizer)(Conversation(talk), ""))
    assert first == said + "<|im_end|>"
    assert second == "Yes <|im_end|><|im_end|>"
    table = Table("x.jsonl", "0", {"messages": [TALK.messages, talk, talk]}, [1, 2, 3])
    (warning,) = special_tokens_in_text(table, "messages", tokenizer)
    assert "2 rows" in warning
    assert "'<|im_end|>' in x.jsonl, row 2 (line 2)" in warning
    assert special_tokens_in_text(table.take([0]), "messages", tokenizer) == []


@pytest.mark.parametrize("name", ["llama3", "gemma", "llama3_1", "deepseekv3"])
def test_templates_that_write_the_first_token_have_it_once(smollm, name: str) -> None:
    """Also where the tokenizer would put it in front of a text, as those of Llama and Gemma do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = trls(smollm, name)
    bos = "<|im_start|>"
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id
    for ids in (ChatEncoder(tokenizer)(TALK, "")[0], encode_prompt(tokenizer, [user("Hi")])):
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id
    text = ChatTemplate(tokenizer).render(TALK)
    rows = Table("x", "0", {"text": [text, "Hi"]})
    for ids in build_examples("causal-lm", rows, Columns.of("causal-lm", {}), processor=tokenizer)["input_ids"]:
        assert [i for i, token in enumerate(ids) if token == tokenizer.bos_token_id] == [0]
    assert encode_prompt(tokenizer, text).count(tokenizer.bos_token_id) == 1


# the end of an answer


def test_the_end_of_a_turn_need_not_be_a_special_token() -> None:
    from ..conftest import WORDS
    from ..tiny import word_level

    tokenizer = word_level([*WORDS, "user", "assistant", "answer", "OVER"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ' ' + m.content + ' OVER ' }}{% endfor %}"
    assert set(tokenizer.convert_ids_to_tokens(stops(tokenizer, "chat").tokens)) == {"</s>", "OVER"}
    assert stops(tokenizer, "causal-lm").tokens == [tokenizer.eos_token_id]


@pytest.mark.parametrize(("end", "text"), [("\n### End\n", "### End"), ("\n", "\n")])
def test_an_end_that_is_no_single_token_is_a_text(smollm, end: str, text: str) -> None:
    tokenizer = with_template(
        smollm, "{% for m in messages %}{{ m.role + ': ' + m.content + end }}{% endfor %}".replace("end }", f"{end!r} }}")
    )
    assert stops(tokenizer, "chat") == ([tokenizer.eos_token_id], text)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("qwen3", {"<|im_end|>"}), ("llama3_1", {"<|eot_id|>"}), ("gemma3", {"<end_of_turn>"}), ("phi3", {"<|end|>"}),
        ("glm4moe", {"<|user|>", "<|observation|>"}), ("gptoss", {"<|return|>", "<|call|>"}),
        ("gemma4", {"<turn|>", "<|tool_response>"}),
        ("deepseekv3", {"<\uff5cend\u2581of\u2581sentence\uff5c>"}), ("cohere", {"<|END_OF_TURN_TOKEN|>"}),
    ],
)  # fmt: skip
def test_the_stop_tokens_are_those_that_the_models_publish(smollm, name: str, ends: set[str]) -> None:
    """In the generation configs of the models on the hub; beside them, the end of text."""
    tokenizer = trls(smollm, name)
    assert set(tokenizer.convert_ids_to_tokens(stops(tokenizer, "chat").tokens)) - {tokenizer.eos_token} == ends - {
        "<|im_end|>"
    }


# the date


CLOCKS = [name for name in NAMES if "strftime_now" in (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", CLOCKS)
def test_a_template_is_told_the_day_that_is_set(smollm, name: str) -> None:
    tokenizer = trls(smollm, name)
    assert reads_clock(tokenizer)
    texts = []
    for day in ("2024-07-26", "2031-01-02"):
        set_date(tokenizer, day)
        ids = ChatEncoder(tokenizer)(TALK, "")[0]
        texts.append(tokenizer.decode(ids))
        assert encode_prompt(tokenizer, TALK.up_to(3))[:20] == ids[:20]
    assert "2024" in texts[0]
    assert texts[0] != texts[1]
    assert re.sub(r"2031-01-02|02 Jan(uary)? 2031|Jan(uary)? 2, 2031", "DAY", texts[1]) == re.sub(
        r"2024-07-26|26 Jul(y)? 2024|Jul(y)? 26, 2024", "DAY", texts[0]
    )


def test_the_day_in_every_form() -> None:
    from datetime import datetime

    from transformers.utils.chat_template_utils import render_jinja_template

    forms = "%d %b %Y|%A %B %d|%Y-%m-%d %H:%M:%S|%-d/%-m/%y|%j"
    template = "{% if strftime_now is defined %}\n  {{ strftime_now('" + forms + "') }}{% endif %}"
    (texts, _) = render_jinja_template([[user("a")]], chat_template=dated(template, "2024-07-06"))
    assert texts == ["  " + datetime(2024, 7, 6).strftime(forms)]
    (plain, _) = render_jinja_template([[user("a")]], chat_template=dated("\n  {% if true %}\n x{% endif %}", "2024-07-06"))
    assert plain == render_jinja_template([[user("a")]], chat_template="\n  {% if true %}\n x{% endif %}")[0]


def test_a_date_variable_takes_the_day_that_is_set(smollm) -> None:
    """Llama 3.1's template reads no clock: without a day it keeps its own, as before."""
    tokenizer = trls(smollm, "llama3_1")
    assert not reads_clock(tokenizer)
    assert "Today Date: 26 Jul 2024" in ChatTemplate(tokenizer).render(TALK)
    set_date(tokenizer, "2031-01-02")
    assert "Today Date: 02 Jan 2031" in ChatTemplate(tokenizer).render(TALK)


# cutting


def test_an_answer_that_is_cut_has_no_end(smollm) -> None:
    tokenizer = with_template(smollm, CHATML)
    table = Table("x", "0", {"messages": [TALK.messages]})
    whole = build_examples("chat", table, Columns.of("chat", {}), processor=tokenizer)[0]
    last = max(i for i, label in enumerate(whole["labels"]) if label != IGNORED)
    for length in range(last - 2, last + 1):
        row = build_examples("chat", table, Columns.of("chat", {}), processor=tokenizer, max_length=length)[0]
        assert row["labels"] == whole["labels"][:length]
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") != row["labels"][-1]


def test_arguments_that_are_no_object_are_refused_in_a_prompt_too(smollm) -> None:
    tokenizer = trls(smollm, "qwen3")
    messages = json.loads(json.dumps(calling("[1]").messages[:3]))
    with pytest.raises(DataError, match=r"prompt 2, message 2: the arguments of a tool call"):
        encode_prompt(tokenizer, messages, where="prompt 2")
