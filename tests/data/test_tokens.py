"""The cache of tokenized rows: its key holds everything that the tokens depend on."""

import json
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from alloralib.data import tokens
from alloralib.data.examples import build_examples
from alloralib.data.forms import Columns
from alloralib.data.table import Table
from alloralib.data.tokens import TokenCache
from alloralib.errors import ConfigError

from ..conftest import WORDS
from ..tiny import word_level

TABLE = Table("rows.csv", "0", {"text": ["a good film", "a bad story", "the plot was fine"], "label": ["pos", "neg", "pos"]})
COLUMNS = Columns.of("classification", {})


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    """An empty cache that is on."""
    monkeypatch.setenv("ALLORA_CACHE", str(tmp_path))
    monkeypatch.setenv(tokens.SWITCH, "1")
    return tmp_path / "tokens"


def open_cache(tokenizer=None, *, kind="classification", columns=COLUMNS, names=("neg", "pos"), max_length=512) -> TokenCache:
    tokenizer = word_level(WORDS) if tokenizer is None else tokenizer
    return TokenCache(kind, columns, tokenizer, names=list(names), max_length=max_length)


def examples(table=TABLE):
    return build_examples("classification", table, COLUMNS, processor=word_level(WORDS), names=["neg", "pos"], max_length=512)


def entry(kept) -> Path:
    (found,) = kept.iterdir()
    return found


def test_cached_examples_equal_those_written_and_are_memory_mapped(kept):
    made = examples()
    open_cache().write(TABLE, made)
    found = open_cache().read(TABLE)
    assert found.features == made.features
    assert found[:] == made[:]
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(entry(kept)) in mapped.read_text()


def test_a_selection_of_rows_is_cached_as_selected():
    made = examples().select([2, 0])
    open_cache().write(TABLE, made)
    assert open_cache().read(TABLE)[:] == made[:]


def test_an_empty_cache_returns_none():
    assert open_cache().read(TABLE) is None


def test_truncation_and_padding_state_of_a_tokenizer_do_not_change_the_key():
    tokenizer = word_level(WORDS)
    before = open_cache(tokenizer).key(TABLE)
    tokenizer("good film", truncation=True, max_length=1, padding="max_length")
    assert open_cache(tokenizer).key(TABLE) == before


def test_the_name_of_the_source_does_not_change_the_key():
    assert open_cache().key(TABLE) == open_cache().key(replace(TABLE, source="elsewhere.csv", sha256="1", lines=[1, 2, 3]))


def _with(table=TABLE, **columns):
    return replace(table, columns=table.columns | columns)


def _tokenizer(**changed):
    tokenizer = word_level(WORDS)
    for name, value in changed.items():
        setattr(tokenizer, name, value)
    return tokenizer


def _more_words():
    tokenizer = word_level(WORDS)
    tokenizer.add_tokens(["plotless"])
    return tokenizer


def _other_processing():
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_level(WORDS)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


CHANGED = {
    "a letter of a row": lambda: open_cache().key(_with(text=["a good film", "a bad storm", "the plot was fine"])),
    "a label": lambda: open_cache().key(_with(label=["pos", "neg", "neg"])),
    "the type of a value": lambda: open_cache().key(_with(label=["pos", "neg", None])),
    "the order of rows": lambda: open_cache().key(TABLE.take([1, 0, 2])),
    "the number of rows": lambda: open_cache().key(TABLE.take([0, 1])),
    "a vocabulary": lambda: open_cache(word_level([*WORDS[1:], WORDS[0]])).key(TABLE),
    "an added token": lambda: open_cache(_more_words()).key(TABLE),
    "what a tokenizer puts around a text": lambda: open_cache(_other_processing()).key(TABLE),
    "the chat template": lambda: open_cache(_tokenizer(chat_template="{{ messages }}")).key(TABLE),
    "the end of a text": lambda: open_cache(_tokenizer(eos_token="<pad>")).key(TABLE),
    "where rows are cut": lambda: open_cache(_tokenizer(truncation_side="left")).key(TABLE),
    "the task": lambda: open_cache(kind="causal-lm", columns=Columns.of("causal-lm", {})).key(TABLE),
    "a column": lambda: open_cache(columns=Columns.of("classification", {"text": "label"})).key(TABLE),
    "the order of the classes": lambda: open_cache(names=("pos", "neg")).key(TABLE),
    "the length": lambda: open_cache(max_length=511).key(TABLE),
}


@pytest.mark.parametrize("what", CHANGED)
def test_every_ingredient_changes_the_key(what):
    assert CHANGED[what]() != open_cache().key(TABLE)


@pytest.mark.parametrize("library", tokens._LIBRARIES)
def test_every_library_version_changes_the_key(monkeypatch, library):
    before, version = open_cache().key(TABLE), tokens.importlib.metadata.version
    monkeypatch.setattr(tokens.importlib.metadata, "version", lambda name: "0" if name == library else version(name))
    assert open_cache().key(TABLE) != before


def test_the_cache_format_changes_the_key(monkeypatch):
    before = open_cache().key(TABLE)
    monkeypatch.setattr(tokens, "FORMAT", tokens.FORMAT + 1)
    assert open_cache().key(TABLE) != before


def _cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink])
@pytest.mark.parametrize("file", ["data-00000-of-00001.arrow", "state.json", "dataset_info.json", tokens.MANIFEST])
def test_a_damaged_entry_is_reported_deleted_and_written_again(kept, capsys, damage, file):
    open_cache().write(TABLE, examples())
    damage(entry(kept) / file)
    assert open_cache().read(TABLE) is None
    assert "damaged" in capsys.readouterr().err
    assert list(kept.iterdir()) == []
    open_cache().write(TABLE, examples())
    assert open_cache().read(TABLE)[:] == examples()[:]


def test_only_the_digests_find_a_flipped_bit(kept, monkeypatch):
    open_cache().write(TABLE, examples())
    _flip(entry(kept) / "data-00000-of-00001.arrow")
    monkeypatch.setattr(tokens, "_digests", lambda place: json.loads((place / tokens.MANIFEST).read_text())["sha256"])
    found = open_cache().read(TABLE)  # the broken guard
    assert found is None or found[:] != examples()[:]


def test_concurrent_writers_leave_one_complete_entry(kept):
    caches, made = [open_cache() for _ in range(8)], examples()
    together = threading.Barrier(len(caches))

    def write(cache):
        together.wait()
        cache.write(TABLE, made)

    threads = [threading.Thread(target=write, args=[cache]) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(kept.iterdir())) == 1
    assert open_cache().read(TABLE)[:] == made[:]


def test_an_incomplete_write_leaves_no_entry(kept, monkeypatch):
    monkeypatch.setattr(Path, "rename", lambda *args: (_ for _ in ()).throw(OSError("no room")))
    open_cache().write(TABLE, examples())
    assert list(kept.iterdir()) == []
    assert open_cache().read(TABLE) is None


def test_an_unwritable_cache_directory_does_not_stop_a_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALLORA_CACHE", str(tmp_path / "file"))
    open_cache().write(TABLE, examples())
    assert open_cache().read(TABLE) is None


def test_the_environment_variable_turns_the_cache_off(kept, monkeypatch):
    open_cache().write(TABLE, examples())
    monkeypatch.setenv(tokens.SWITCH, "0")
    assert open_cache().read(TABLE) is None
    open_cache().write(TABLE.take([0]), examples())
    assert len(list(kept.iterdir())) == 1


def test_another_value_of_the_environment_variable_is_refused(monkeypatch):
    monkeypatch.setenv(tokens.SWITCH, "perhaps")
    with pytest.raises(ConfigError, match="neither on nor off"):
        open_cache()


def test_no_pickle_is_written_or_read(kept, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle")

    for name in ("dump", "load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    open_cache().write(TABLE, examples())
    assert open_cache().read(TABLE)[:] == examples()[:]
    assert {path.suffix for path in entry(kept).iterdir()} == {".arrow", ".json"}
