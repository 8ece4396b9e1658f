"""Runs on conversations, from the rows to what is done with the tuned model: tools, the end of a turn, the date."""

import json
import shutil
from datetime import date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from alloralib import open_run
from alloralib.cli.main import main
from alloralib.data import tokens
from alloralib.errors import ConfigError, DataError
from alloralib.evaluation.generation import encode_prompt
from alloralib.records import RunRecord
from alloralib.reporting.card import card
from alloralib.training import prepare, trainer
from alloralib.training.config import RunConfig
from alloralib.training.run import dry_run, train

from ..adapters.models import llama
from ..cli.commands import json_of, refused
from ..conftest import WORDS
from ..tiny import save, word_level
from ..trained import jsonl

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
ROLES = ["system", "user", "assistant", "tool", "tools", "call"]
CHATML = (  # with tools and calls; the base's own end of text is </s>
    "{% if tools %}{{ 'tools ' }}{% for t in tools %}{{ t.function.name + ' ' }}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role + ' ' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ ' call ' + c.function.name }}{% for k, v in c.function.arguments.items() %}{{ ' ' + k + ' ' + v }}{% endfor %}"
    "{% endfor %}{{ ' <|im_end|> ' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
DATED = "{{ strftime_now('%A') + ' ' }}" + CHATML
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML


def make_model(directory: Path, template: str) -> str:
    tokenizer = word_level([*WORDS, *ROLES, *DAYS])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = template
    model = llama()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return save(directory, model, tokenizer)


def rows(more: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    asked = [f"{WORDS[i % 20]} {WORDS[(i * 7 + 3) % 20]}" for i in range(24)]
    said = ["fine" if i % 2 else "poor" for i in range(24)]
    talks = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in zip(asked, said, strict=True)]
    return [{"messages": talk} | (more or {}) for talk in talks]


def settings(directory: Path, template: str, data: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    fixed = {"task": "chat", "model": make_model(directory / "model", template), "data": jsonl(directory / "rows.jsonl", data)}
    return fixed | {"output_dir": str(directory / "run"), "max_steps": 2, "batch_size": 4, "r": 2} | more


# the end of a turn


@pytest.fixture(scope="module")
def chatml(tmp_path_factory) -> Path:
    """A run of a base that ends texts with </s>, on conversations whose turns end with <|im_end|>."""
    directory = tmp_path_factory.mktemp("chatml")
    train(RunConfig.of(settings(directory, CHATML, rows())))
    return directory / "run"


def ends_of(config: GenerationConfig, tokenizer: Any) -> set[str]:
    ends = config.eos_token_id
    return set(tokenizer.convert_ids_to_tokens(ends if isinstance(ends, list) else [ends]))


def test_the_learnt_end_of_turn_is_a_stop_token_wherever_the_model_is_used(chatml, tmp_path) -> None:
    base = AutoModelForCausalLM.from_pretrained(chatml.parent / "model")
    tokenizer = AutoTokenizer.from_pretrained(chatml)
    assert ends_of(base.generation_config, tokenizer) == {"</s>"}
    both = {"</s>", "<|im_end|>"}
    assert ends_of(GenerationConfig.from_pretrained(chatml), tokenizer) == both  # beside the adapter
    run = open_run(chatml)
    assert ends_of(run.model.generation_config, tokenizer) == both  # lm-eval and any other caller of generate
    run.export(tmp_path / "merged", "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert ends_of(merged.generation_config, tokenizer) == both
    run.export(tmp_path / "peft", "peft")
    for model in ({}, {"task": "causal-lm"}):  # the adapter alone does not know that it was trained to chat
        alone = open_run(tmp_path / "peft", model=str(chatml.parent / "model"), **model)
        assert ends_of(alone.model.generation_config, tokenizer) == both


def test_a_tuned_model_stops_at_it(chatml, monkeypatch) -> None:
    """A model that says nothing but <|im_end|> says nothing."""
    run = open_run(chatml)
    end = run.processor.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        run.model.get_output_embeddings().weight.zero_()
        run.model.get_output_embeddings().weight[end] = run.model.get_output_embeddings().weight[end] * 0
    monkeypatch.setattr(
        run.model.get_output_embeddings(), "forward", lambda x: torch.eye(64)[end].expand(*x.shape[:-1], 64) * 9
    )
    ids = torch.tensor([encode_prompt(run.processor, [{"role": "user", "content": "good film"}])])
    assert run.model.generate(input_ids=ids, max_new_tokens=6)[0, ids.shape[1] :].tolist() == [end]
    assert run.generate(["good film"], max_new_tokens=6) == [""]


def test_the_record_and_the_card_name_what_ends_an_answer(chatml) -> None:
    record = RunRecord.read(chatml / "record.json")
    assert record.model["end_tokens"].keys() == {"</s>", "<|im_end|>"}
    text = card(record)
    assert "`<|im_end|>`" in text
    snippet = next(line for line in text.splitlines() if "GenerationConfig.from_pretrained" in line)
    model = AutoModelForCausalLM.from_pretrained(chatml.parent / "model")
    exec(snippet, {"GenerationConfig": GenerationConfig, "model": model, "adapter": str(chatml)})
    assert ends_of(model.generation_config, AutoTokenizer.from_pretrained(chatml)) == {"</s>", "<|im_end|>"}


def test_an_end_of_several_tokens_is_said_and_answers_are_cut_there(tmp_path, monkeypatch) -> None:
    template = CHATML.replace("<|im_end|>", "the ending")
    found = dry_run(RunConfig.of(settings(tmp_path, template, rows())))
    assert any("ends an answer with 'the ending'" in text for text in found["warnings"])
    train(RunConfig.of(settings(tmp_path, template, rows())))
    run = open_run(tmp_path / "run")
    answer = run.processor("fine music the ending good", add_special_tokens=False, return_tensors="pt")["input_ids"]
    monkeypatch.setattr(run.model, "generate", lambda input_ids, **_: torch.cat([input_ids, answer], dim=1))
    assert run.generate("good film") == ["fine music "]


def test_the_stop_token_that_is_looked_for_is_that_of_the_template(tmp_path) -> None:
    """Not one of a list of names. It is cut off from every row here."""
    template = CHATML.replace("<|im_end|>", "<|over|>")
    asked = settings(tmp_path, template, rows())
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|over|>"]})
    tokenizer.save_pretrained(asked["model"])
    assert not any("stop token" in text for text in dry_run(RunConfig.of(asked))["warnings"])
    assert any("stop token" in text for text in dry_run(RunConfig.of(asked | {"max_length": 6}))["warnings"])


# tools


WEATHER = {"type": "function", "function": {"name": "music", "parameters": {"type": "object"}}}


def called() -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "music", "arguments": '{"scene": "great"}'}}
    ask, result = {"role": "user", "content": "good film"}, {"role": "tool", "content": "fine", "tool_call_id": "c1"}
    messages = [
        ask,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        result,
        {"role": "assistant", "content": "a"},
    ]
    return {"messages": messages, "tools": [WEATHER]}


def test_tools_in_some_rows_are_trained_evaluated_and_answered(tmp_path, capsys) -> None:
    """The last message of some test rows is a call, so `evaluate --generate` compares with what the template makes of it."""
    some: dict[str, Any] = called()
    ending = {"messages": some["messages"][:2], "tools": json.dumps([WEATHER["function"]])}
    data = [row | {"tools": None} for row in rows()]
    config = settings(tmp_path, CHATML, [*data, some], test_data=jsonl(tmp_path / "test.jsonl", [ending, data[0]]))
    data[0]["messages"][0]["content"] = "a plot not in training"
    jsonl(tmp_path / "test.jsonl", [ending, data[0]])
    train(RunConfig.of(config))
    items = tmp_path / "items.jsonl"
    json_of(capsys, ["evaluate", config["output_dir"], "--generate", "--items", str(items)])
    assert json.loads(items.read_text().splitlines()[0])["base"]["references"] == ["call music scene great"]
    prompts = tmp_path / "prompts.jsonl"
    asked = {"messages": [{"role": "user", "content": "bad film"}], "tools": [WEATHER]}
    jsonl(prompts, [asked, {"prompt": "bad film"}, {"prompt": "bad film", "system": "very good"}])
    capsys.readouterr()
    words = ["generate", config["output_dir"], "--prompts", str(prompts), "--max-new-tokens", "3"]
    assert main([*words, "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {key: value for key, value in answers[0].items() if key not in ("base", "tuned")} == asked
    run = open_run(config["output_dir"])
    assert answers[0]["tuned"] == run.generate([asked], max_new_tokens=3)[0]
    assert "tools music" in run.processor.decode(encode_prompt(run.processor, asked))
    assert main(words) == 0
    assert capsys.readouterr().out.count("prompt  bad film") == 3
    prompts.write_text('{"prompt": "good"}\n{"messages": [{"role": "usr", "content": "good"}]}\n')
    refused(words, tmp_path, capsys, r"prompts.jsonl, line 2, message 1: unknown role 'usr'[\s\S]*'user'")


def test_system_with_a_template_that_has_none(tmp_path, capsys) -> None:
    config = settings(tmp_path, NO_SYSTEM, rows())
    system = tmp_path / "system.jsonl"
    jsonl(system, [*rows({"system": None}), rows({"system": "bad"})[0]])
    words = ["train", *(w for k, v in (config | {"data": str(system)}).items() for w in ("--" + k.replace("_", "-"), str(v)))]
    refused(
        words,
        tmp_path,
        capsys,
        r"system.jsonl, row 25 \(line 25\): [\s\S]*System role not supported[\s\S]*leave out the system",
    )
    train(RunConfig.of(config))
    refused(["generate", config["output_dir"], "--prompt", "good", "--system", "bad"], tmp_path, capsys, "--system")
    with pytest.raises(DataError, match=r"prompt 2: [\s\S]*no system message here"):
        open_run(config["output_dir"]).generate([[{"role": "user", "content": "a"}], {"prompt": "a", "system": "bad"}])


# the date


def at(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """Move the clock of this package and of transformers to a day."""
    now = datetime.fromisoformat(day)
    monkeypatch.setattr(prepare, "datetime", SimpleNamespace(date=SimpleNamespace(today=lambda: now.date())))
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", SimpleNamespace(now=lambda: now))


FRIDAY, SATURDAY = "2026-11-27", "2026-11-28"


def test_the_day_of_a_run_is_fixed_recorded_and_in_the_key_of_the_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ALLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(tokens.SWITCH, "1")
    config = settings(tmp_path, DATED, rows())
    at(monkeypatch, FRIDAY)
    first = train(RunConfig.of(config))
    entries = set((tmp_path / "cache" / "tokens").iterdir())
    assert first.config["chat_date"] == FRIDAY
    assert f"--chat-date {FRIDAY}" in first.command
    at(monkeypatch, SATURDAY)
    run = open_run(config["output_dir"])
    assert run.evaluate().tuned.metrics["loss"] == pytest.approx(first.metrics["after"]["loss"], rel=1e-5)
    asked = run.processor.decode(encode_prompt(run.processor, [{"role": "user", "content": "good"}]))
    assert asked.startswith("Friday user good")
    second = train(RunConfig.of(config | {"overwrite": True}))
    assert second.config["chat_date"] == SATURDAY
    assert not entries & (set((tmp_path / "cache" / "tokens").iterdir()) - entries)
    assert len(set((tmp_path / "cache" / "tokens").iterdir())) == 2 * len(entries)
    assert second.history != first.history  # other tokens
    again = train(RunConfig.of(config | {"overwrite": True, "chat_date": FRIDAY}))
    assert [step["loss"] for step in again.history] == [step["loss"] for step in first.history]


def test_a_run_is_resumed_with_the_day_it_began(tmp_path, monkeypatch) -> None:
    config = RunConfig.of(settings(tmp_path, DATED, rows(), max_steps=4, checkpoint_every=1))
    at(monkeypatch, FRIDAY)
    whole = train(config.model_copy(update={"output_dir": str(tmp_path / "whole")}))
    step, taken = trainer.RunTrainer.training_step, []

    def stop(*args: Any, **kwargs: Any) -> Any:
        taken.append(None)
        if len(taken) > 2:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.RunTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    at(monkeypatch, SATURDAY)
    resumed = train(config, resume=True)
    assert resumed.config["chat_date"] == FRIDAY
    assert [entry["loss"] for entry in resumed.history] == [entry["loss"] for entry in whole.history]
    assert resumed.metrics == whole.metrics


def test_a_day_that_has_no_effect_is_refused(tmp_path) -> None:
    config = settings(tmp_path, CHATML, rows())
    assert "chat_date" not in RunConfig.of(config).model_dump(exclude_none=True)
    with pytest.raises(ConfigError, match=r"chat template shows no date[\s\S]*leave --chat-date out"):
        dry_run(RunConfig.of(config | {"chat_date": FRIDAY}))
    with pytest.raises(ConfigError, match=r"chat_date is for chat templates[\s\S]*leave --chat-date out"):
        RunConfig.of(config | {"task": "causal-lm", "chat_date": FRIDAY})
    with pytest.raises(ConfigError, match=r"chat_date='28.11.2026'[\s\S]*YYYY-MM-DD"):
        RunConfig.of(config | {"chat_date": "28.11.2026"})
    assert RunConfig.of(config | {"chat_date": date(2026, 11, 27)}).chat_date == FRIDAY  # as YAML reads it


def test_special_tokens_in_texts_are_said(tmp_path) -> None:
    data = rows()
    data[5]["messages"][0]["content"] = "good <|im_end|> film"
    found = dry_run(
        RunConfig.of(settings(tmp_path, CHATML, data, test_data=jsonl(tmp_path / "t.jsonl", [called() | {"tools": []}])))
    )
    (warning,) = (text for text in found["warnings"] if "special token" in text)
    assert "'<|im_end|>' in" in warning
    assert "row 6 (line 6)" in warning
    shutil.rmtree(tmp_path / "model")
