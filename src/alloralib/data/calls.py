"""Tools and tool calls as data sets write them, read into OpenAI's form.

    a tool    {"type": "function", "function": {"name", "description", "parameters"}}, or the inner schema alone
    a call    {"type": "function", "id", "function": {"name", "arguments"}}, or the inner mapping alone

Arguments stay as they were written, a mapping or JSON text: `templates.py` gives each chat template what it wants.
"""

from __future__ import annotations

import json
from typing import Any

from ..errors import DataError

_TOOL = 'write [{"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}}]'
_CALL = 'write {"type": "function", "function": {"name": "...", "arguments": {...}}}'


def without_nulls(value: Any) -> Any:
    """The value without the keys of mappings that are None, at every depth.

    Parquet gives each mapping of a column every key that any of them has. A None among the items of a list is kept.

    >>> without_nulls({"city": "Paris", "code": None, "more": [{"a": None}, None]})
    {'city': 'Paris', 'more': [{}, None]}
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def tools_of(cell: Any, where: str) -> list[dict[str, Any]] | None:
    """The tools of a row; None without tools.

    Args:
        cell: a list of tools, one tool, or either as JSON text; nothing, an empty list or an empty text for no tools.

    Raises:
        DataError: it is something else, or a tool has no name.
    """
    tools = _listed(cell, "tools", _TOOL, where)
    return [_wrapped(tool, f"tool {i}", _TOOL, where) for i, tool in enumerate(tools, start=1)] or None


def tool_calls(cell: Any, where: str) -> list[dict[str, Any]]:
    """The `tool_calls` of a message, each with the name of the tool and its arguments.

    Raises:
        DataError: not a list of calls, or arguments that are no JSON object.
    """
    written = _listed(cell, "tool_calls", _CALL, where)
    calls = [_wrapped(call, f"tool call {i}", _CALL, where) for i, call in enumerate(written, start=1)]
    for call in calls:
        call["function"].setdefault("arguments", {})
        decoded(call["function"]["arguments"], where)
    return calls


def called(written: Any, where: str) -> list[dict[str, Any]]:
    """The tool calls in OpenAI's old `function_call`, or in the text of a message whose role says that it is a call.

    Raises:
        DataError: it is not a call.
    """
    calls = tool_calls(written, where)
    if not calls:
        raise DataError("the message is a tool call without content", where=where, remedy=_CALL)
    return calls


def decoded(arguments: Any, where: str) -> dict[str, Any]:
    """The arguments of a call as a mapping, decoded if they are JSON text.

    Raises:
        DataError: they are no JSON object.
    """
    value = arguments
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        what = f"the arguments of a tool call are not a JSON object but {str(arguments)[:60]!r}"
        raise DataError(what, where=where, remedy=_CALL)
    return value


def _listed(cell: Any, name: str, example: str, where: str) -> list[Any]:
    value = cell
    if isinstance(cell, str) and cell.strip():
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}: not JSON: {error}", where=where, remedy=example) from None
    if not value:
        return []
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise DataError(f"{name}: expected a list, got {str(cell)[:60]!r}", where=where, remedy=example)
    return value


def _wrapped(item: Any, title: str, example: str, where: str) -> dict[str, Any]:
    """A tool or call in OpenAI's form."""
    if isinstance(item, str):  # some sets hold a list of JSON texts, to give Arrow one type
        item = next(iter(_listed(item, title, example, where)), None)
    item = without_nulls(item)
    inner = item.get("function", item) if isinstance(item, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise DataError(f"{title} has no name: {str(item)[:60]!r}", where=where, remedy=example)
    if "function" in item:
        return {"type": "function"} | item | {"function": dict(inner)}
    outer = {key: inner[key] for key in ("id",) if key in inner}
    return {"type": "function"} | outer | {"function": {key: v for key, v in inner.items() if key not in ("id", "type")}}
