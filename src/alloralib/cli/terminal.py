"""Standard output and error that cannot hold every character, or that were closed early."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

_REMEDY = "use a UTF-8 locale (LC_ALL=C.UTF-8) or PYTHONUTF8=1"


def escape_unprintable() -> None:
    r"""Let standard output and error write what their encoding does not have as \x.. and \u...., instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def json_line(value: Any) -> str:
    r"""A value as JSON in one line, with \u.... for what standard output cannot write: in JSON \x.. is no escape."""
    plain = json.dumps(value, ensure_ascii=False)
    try:
        plain.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return plain


def typed(argument: str) -> str:
    """An argument as it was typed in UTF-8. Where the locale has another encoding, Python gives its bytes as half characters.

    Raises:
        ConfigError: it is no UTF-8.
    """
    if not _has_half_characters(argument):
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise ConfigError(f"not UTF-8: {argument!a}", where="the command line", remedy=_REMEDY) from None


def check_names(arguments: Mapping[str, Any]) -> None:
    """Check the names of files and directories among the arguments of a verb: tokenizers writes only to those in UTF-8.

    Raises:
        ConfigError: a name that the locale's encoding does not have.
    """
    for argument, value in arguments.items():
        if argument != "system" and isinstance(value, str) and _has_half_characters(value):
            where = "--" + argument.replace("_", "-")
            raise ConfigError(f"a name that the locale cannot spell: {value!a}", where=where, remedy=_REMEDY)


def _has_half_characters(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def discard_output() -> None:
    """Send the rest of standard output nowhere, so that Python can flush it at its end. For a reader that has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
