"""Conversations of every common format, read into one: system texts, tools, tool calls, weights."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from alloralib.data.conversations import ROLES, Conversation, conversations, read_prompt
from alloralib.data.forms import Columns
from alloralib.data.parts import load_parts
from alloralib.data.table import Table, read_table
from alloralib.errors import DataError

SCHEMA = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": SCHEMA}
ASK, SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}


def read(row: dict[str, Any]) -> Conversation:
    """The conversation of a row between two plain ones, so that errors must name the second."""
    columns = {name: [None, cell, None] for name, cell in row.items()}
    name = "conversations" if "conversations" in row else "messages"
    columns[name] = [[ASK, SAY], row[name], [ASK, SAY]]
    return conversations(Table("x.jsonl", "0", columns, [1, 2, 3]), name)[1]


def call(arguments: Any = '{"city": "Paris"}', **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}} | more


# system texts


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "system", "content": "Be brief."}, ASK, SAY]},
        {"messages": [ASK, SAY], "system": "Be brief."},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "system": "Be brief."},
        {"messages": [{"role": "system", "content": "Be brief."}, ASK, SAY], "system": "Be brief. "},
    ],
)
def test_the_system_text_is_the_first_message(row: dict[str, Any]) -> None:
    assert read(row).messages == [{"role": "system", "content": "Be brief."}, ASK, SAY]


@pytest.mark.parametrize("text", ["", None])
def test_an_empty_system_text_is_none(text: str | None) -> None:
    assert read({"messages": [ASK, SAY], "system": text}).messages == [ASK, SAY]


def test_system_texts_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(DataError, match=r"x.jsonl, row 2 \(line 2\): two system texts"):
        read({"messages": [{"role": "system", "content": "Be long."}, ASK, SAY], "system": "Be brief."})
    with pytest.raises(DataError, match=r"row 2.*column 'system' is not text but '7'"):
        read({"messages": [ASK, SAY], "system": 7})


# roles


def test_roles_of_all_formats() -> None:
    seen = {name: read({"messages": [ASK, {"role": name, "content": json.dumps(call())}, SAY]}).messages[1] for name in ROLES}
    assert {name for name, message in seen.items() if message["role"] == "tool"} == {
        "tool", "observation", "function", "ipython", "tool_response",
    }  # fmt: skip
    assert seen["developer"]["role"] == "developer"
    assert seen["human"]["role"] == seen["user"]["role"] == "user"
    assert all(seen[name]["tool_calls"] == [call()] for name in ("function_call", "tool_call"))


@pytest.mark.parametrize(
    ("role", "nearest"),
    [("user_id", "'user'"), ("Assistant", "'assistant'"), ("observations", "'observation'"), ("narrator", "known names")],
)
def test_an_unknown_role_is_refused_with_the_nearest(role: str, nearest: str) -> None:
    with pytest.raises(DataError, match=rf"row 2 \(line 2\), message 1: unknown role '{role}'[\s\S]*{nearest}"):
        read({"messages": [{"role": role, "content": "a"}, SAY]})


def test_other_keys_of_a_message_are_kept() -> None:
    message = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2", "name": "ada"}
    assert read({"messages": [ASK, message]}).messages[1] == message


# tools


@pytest.mark.parametrize(
    "cell", [[TOOL], [SCHEMA], json.dumps([TOOL]), json.dumps([SCHEMA]), [json.dumps(TOOL)], TOOL, json.dumps(SCHEMA)]
)
def test_tools_in_every_form(cell: Any) -> None:
    assert read({"messages": [ASK, SAY], "tools": cell}).tools == [TOOL]


@pytest.mark.parametrize("cell", [None, [], "", "[]"])
def test_no_tools(cell: Any) -> None:
    assert read({"messages": [ASK, SAY], "tools": cell}).tools is None


@pytest.mark.parametrize(
    ("cell", "match"),
    [("weather", "tools: not JSON"), (["[]"], "tool 1 has no name"), ([{"type": "web_search"}], "tool 1 has no name"),
     (3, "tools: expected a list"), ([TOOL, {"name": ""}], "tool 2 has no name")],
)  # fmt: skip
def test_malformed_tools_are_refused(cell: Any, match: str) -> None:
    with pytest.raises(DataError, match=rf"x.jsonl, row 2 \(line 2\): {match}[\s\S]*remedy: write \[") as caught:
        read({"messages": [ASK, SAY], "tools": cell})
    assert "Traceback" not in str(caught.value)


# tool calls


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [call()]},
        {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": '{"city": "Paris"}'}]},
        {"role": "assistant", "tool_calls": json.dumps([call()])},
        {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": '{"city": "Paris"}'}},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": '{"city": "Paris"}'})},
        {"from": "function_call", "value": json.dumps([{"name": "weather", "arguments": '{"city": "Paris"}'}])},
    ],
)
def test_tool_calls_in_every_form(message: dict[str, Any]) -> None:
    found = read({"messages": [ASK, message, {"role": "tool", "content": "17 C"}, SAY]}).messages[1]
    assert found == {"role": "assistant", "content": "", "tool_calls": [call()]}


def test_ids_and_names_of_calls_are_kept() -> None:
    result = {"role": "tool", "content": "17 C", "tool_call_id": "c1", "name": "weather"}
    messages = [ASK, {"role": "assistant", "content": "", "tool_calls": [call(id="c1")]}, result, SAY]
    assert read({"messages": messages}).messages == messages


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ({"tool_calls": [call("city Paris")]}, "arguments of a tool call are not a JSON object but 'city Paris'"),
        ({"tool_calls": [call("[1]")]}, "not a JSON object"),
        ({"tool_calls": [call(None) | {"function": {}}]}, "tool call 1 has no name"),
        ({"tool_calls": "weather"}, "tool_calls: not JSON"),
        ({"role": "function_call", "content": "weather(Paris)"}, "not JSON"),
        ({"role": "function_call", "content": ""}, "tool call without content"),
    ],
)
def test_malformed_calls_are_refused(message: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=rf"row 2 \(line 2\), message 2: .*{match}[\s\S]*remedy"):
        read({"messages": [ASK, {"role": "assistant", "content": ""} | message, SAY]})


def test_parquets_nulls_are_not_learnt(tmp_path) -> None:
    """Arrow gives two shapes of arguments and of schemas one type, with a null where a key is not there."""
    calls = [call({"city": "Paris"}), call({"code": {"zip": 75}})]
    tools = [TOOL, {"type": "function", "function": {"name": "time", "description": "what time it is"}}]
    rows = [{"messages": [ASK, {"role": "assistant", "tool_calls": [c]}], "tools": tools} for c in calls]
    parquet.write_table(pyarrow.Table.from_pylist([*rows, {"messages": [ASK, SAY]}]), tmp_path / "a.parquet")
    written = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert written[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris", "code": None}
    found = conversations(read_table(str(tmp_path / "a.parquet")), "messages")
    assert [c.messages[1].get("tool_calls") for c in found] == [[calls[0]], [calls[1]], None]
    assert [c.tools for c in found] == [tools, tools, None]


def test_a_null_in_json_text_is_kept() -> None:
    """What is meant to be null is written in arguments as JSON text."""
    arguments = '{"city": null}'
    found = read({"messages": [ASK, {"role": "assistant", "tool_calls": [call(arguments)]}, SAY]})
    assert found.messages[1]["tool_calls"] == [call(arguments)]


# turns that are not learnt


@pytest.mark.parametrize("key", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"weight": 0, "train": False}])
def test_an_answer_of_weight_0_is_not_trained(key: dict[str, Any]) -> None:
    found = read({"messages": [ASK, SAY | key, ASK, SAY | {"weight": 1}], "system": "Be brief."})
    assert found.untrained == {2}
    assert found.messages[1:] == [ASK, SAY, ASK, SAY]


def test_a_message_of_the_user_may_have_the_weight_0() -> None:
    assert read({"messages": [ASK | {"weight": 0}, SAY | {"weight": 1}]}) == Conversation([ASK, SAY])


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([ASK, SAY | {"weight": 0.5}], r"message 2: weight is 0.5[\s\S]*use 0 .* or 1"),
        ([ASK, SAY | {"weight": "1"}], "message 2: weight is '1'"),
        ([ASK, SAY | {"train": "no"}], "message 2: train is 'no'"),
        ([ASK, SAY | {"weight": 1, "train": False}], "contradict"),
        ([ASK | {"train": True}, SAY], "message 1: train True on a message of another role"),
        ([ASK, SAY | {"weight": 0}, ASK, SAY | {"train": False}], "every answer has the weight 0"),
    ],
)
def test_other_weights_are_refused(messages: list[dict[str, Any]], match: str) -> None:
    with pytest.raises(DataError, match=rf"x.jsonl, row 2 \(line 2\).*{match}"):
        read({"messages": messages})


def test_rows_that_differ_in_tools_or_weights_are_not_duplicates(tmp_path) -> None:
    variants: list[dict[str, Any]] = [{}, {"tools": [TOOL]}, {"tools": [SCHEMA | {"name": "time"}]}]
    messages = [[ASK, SAY, ASK, SAY], [ASK, SAY | {"weight": 0}, ASK, SAY]]
    rows: list[dict[str, Any]] = [{"messages": m, "tools": None} | v for v in variants for m in messages]
    rows += [rows[0], {"messages": [{"role": "user", "content": "Bye"}, SAY], "tools": None}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = load_parts("chat", Columns.of("chat", {}), data=str(tmp_path / "a.jsonl"), test_share=0.1)
    assert parts.removed["train"] == 1
    assert sorted([len(parts.train), len(parts.test)]) == [1, 6]  # one example: all its rows stay in one part


# prompts


@pytest.mark.parametrize(
    "prompt",
    ["Hi", [ASK], {"prompt": "Hi"}, {"messages": [ASK]}, {"conversations": [{"from": "human", "value": "Hi"}]},
     {"messages": json.dumps([ASK])}, Conversation([ASK])],
)  # fmt: skip
def test_prompts_in_every_form(prompt: Any) -> None:
    assert read_prompt(prompt, "prompt 1") == Conversation([ASK])
    system = {"role": "system", "content": "Be brief."}
    assert read_prompt(prompt, "prompt 1", "Be brief.") == Conversation([system, ASK])


def test_prompts_that_cannot_be_answered() -> None:
    assert read_prompt({"prompt": "Hi", "tools": [SCHEMA], "system": "x"}, "").tools == [TOOL]
    with pytest.raises(DataError, match="prompt 1: the conversation ends with an answer"):
        read_prompt([ASK, SAY], "prompt 1")
    with pytest.raises(DataError, match="two system texts"):
        read_prompt([{"role": "system", "content": "a"}, ASK], "prompt 1", "b")
    with pytest.raises(DataError, match="expected a list of messages, got 'None'"):
        read_prompt({"tools": []}, "prompt 1")


def test_files_of_conversations(tmp_path: Path) -> None:
    """LLaMA-Factory's own example of tools: ShareGPT's roles, and tools as JSON text in some rows."""
    rows = [
        {
            "conversations": [
                {"from": "human", "value": "Weather in Paris?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'},
                {"from": "observation", "value": '{"degrees": 17}'},
                {"from": "gpt", "value": "17 degrees."},
            ],
            "system": "",
            "tools": json.dumps([SCHEMA]),
        },
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "system": "s", "tools": ""},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    first, second = conversations(read_table(str(tmp_path / "a.json")), "messages")
    assert [message["role"] for message in first.messages] == ["user", "assistant", "tool", "assistant"]
    assert first.messages[1]["tool_calls"] == [call({"city": "Paris"})]
    assert first.messages[2]["content"] == '{"degrees": 17}'
    assert (first.tools, second.tools) == ([TOOL], None)
    assert second.messages[0] == {"role": "system", "content": "s"}
