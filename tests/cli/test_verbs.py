"""The commands that take a run, on small runs made by hand, and every mistake that they explain."""

import argparse
import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alloralib import make_config
from alloralib.cli.main import VERBS, build_parser, main
from alloralib.export.inspect import inspect_adapter
from alloralib.ops.scale import row_norms, scale
from alloralib.records import RunRecord
from alloralib.training.config import RunConfig

from ..adapters.models import randomise
from ..conftest import WORDS
from .commands import json_of, refused


def lay_out(directory, base: str, task: str, data, *, method="allora", trained=True, record=True, **columns):
    """Write the files of a run, without training."""
    settings = {"task": task, "model": base, "data": str(data), "output_dir": str(directory), "method": method}
    settings |= {"test_share": 0.5, "test_rows": 20} | columns
    config = RunConfig.of(settings)
    torch.manual_seed(config.adapter_seed)
    labels = ["neg", "pos"] if task == "classification" else None
    if labels:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        model.config.pad_token_id = 0
    else:
        model = AutoModelForCausalLM.from_pretrained(base)
    kind = "SEQ_CLS" if labels else "CAUSAL_LM"
    model = get_peft_model(model, make_config(method, r=4, target_modules=["q_proj", "down_proj"], task_type=kind)).eval()
    if trained:
        randomise(model)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    if record:
        described = {"labels": labels} if labels else {}
        empty = {"machine": {}, "model": {}, "adapter": {}, "preflight": {}, "metrics": {}, "history": [], "seconds": {}}
        empty |= {"validation": {"history": [], "best_step": None}, "rule": [], "versions": {}}
        RunRecord(config=config.model_dump(exclude_none=True), command="", data=described, **empty).write(
            directory / "record.json"
        )
    return model


@pytest.fixture
def classifier(tmp_path, tiny_llama, reviews) -> str:
    lay_out(tmp_path / "run", tiny_llama, "classification", reviews)
    return str(tmp_path / "run")


@pytest.fixture
def writer(tmp_path, tiny_llama, reviews) -> str:
    lay_out(tmp_path / "run", tiny_llama, "causal-lm", reviews, prompt_column="prompt", completion_column="completion")
    return str(tmp_path / "run")


# evaluate


def test_evaluate_a_classifier(classifier, tmp_path, capsys) -> None:
    items = tmp_path / "items.jsonl"
    found = json_of(capsys, ["evaluate", classifier, "--items", str(items)])
    assert (found["rows"], found["task"]) == (20, "classification")
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(20))
    for which in ("base", "tuned"):
        right = sum(row[which]["correct"] for row in rows)
        assert found[which]["accuracy"] == right / 20
        assert found[which]["accuracy_low"] < found[which]["accuracy"] < found[which]["accuracy_high"]
    changed = sum(row["base"]["correct"] != row["tuned"]["correct"] for row in rows)
    assert found["paired"]["only_before"] + found["paired"]["only_after"] == changed
    assert found["paired"]["difference"] == pytest.approx(found["tuned"]["accuracy"] - found["base"]["accuracy"])
    assert any(row["base"]["probability"] != row["tuned"]["probability"] for row in rows)
    assert main(["evaluate", classifier]) == 0
    out = capsys.readouterr().out
    assert "McNemar" in out
    assert "balanced accuracy" in out


def test_evaluate_a_file_takes_all_its_rows(classifier, tmp_path, reviews, capsys) -> None:
    assert json_of(capsys, ["evaluate", classifier, "--data", str(reviews)])["rows"] == 60
    assert json_of(capsys, ["evaluate", classifier, "--data", str(reviews), "--rows", "7"])["rows"] == 7


def test_evaluate_an_adapter_without_a_record(tmp_path, tiny_llama, reviews, capsys) -> None:
    lay_out(tmp_path / "run", tiny_llama, "classification", reviews, record=False)
    words = ["evaluate", str(tmp_path / "run"), "--data", str(reviews), "--model", tiny_llama]
    found = json_of(capsys, words)
    assert found["rows"] == 60
    refused(words[:2], tmp_path, capsys, r"give data \(--data\)")
    one = tmp_path / "one.csv"
    one.write_text("text,label\ngood film,pos\n")
    refused(["evaluate", str(tmp_path / "run"), "--data", str(one)], tmp_path, capsys, "one class only")


def test_evaluate_language(writer, tmp_path, capsys) -> None:
    found = json_of(capsys, ["evaluate", writer, "--items", str(tmp_path / "items.jsonl"), "--generate"])
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert found["tuned"]["tokens"] == 40  # the completion's word and the end of text, 20 times
    total = sum(row["tuned"]["loss"] * row["tuned"]["tokens"] for row in rows)
    assert found["tuned"]["loss"] == pytest.approx(total / 40)
    assert found["tuned"]["exact_match"] == sum(row["tuned"]["correct"] for row in rows) / 20
    found = json_of(capsys, ["evaluate", writer])
    assert found["paired"]["lower"] + found["paired"]["higher"] == 20
    assert main(["evaluate", writer]) == 0
    assert "sign test" in capsys.readouterr().out


def test_evaluate_multiple_choice(tmp_path, tiny_llama, capsys) -> None:
    data = tmp_path / "mc.jsonl"
    rows = [{"prompt": f"the {w} was", "choices": ["good", "very bad", "fine"], "answer": i % 3}
            for i, w in enumerate(["film", "plot", "actor", "music"] * 6)]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lay_out(tmp_path / "run", tiny_llama, "multiple-choice", data)
    found = json_of(capsys, ["evaluate", str(tmp_path / "run"), "--generate"])
    assert found["base"]["chance"] == pytest.approx(1 / 3)
    assert {"accuracy", "accuracy_per_token", "accuracy_generated"} <= found["tuned"].keys()


CHAT = "{% for m in messages %}{{ m.role }} {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"


@pytest.fixture
def chat(tmp_path, tiny_llama) -> str:
    data = tmp_path / "chat.jsonl"
    asked = [f"{WORDS[i % 20]} {WORDS[(i * 7 + 3) % 20]}" for i in range(24)]
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "fine"}] for text in asked]
    data.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    lay_out(tmp_path / "run", tiny_llama, "chat", data)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(tmp_path / "run")
    return str(tmp_path / "run")


def test_evaluate_and_generate_chat(chat, capsys) -> None:
    found = json_of(capsys, ["evaluate", chat, "--generate"])
    assert {"loss", "exact_match"} <= found["tuned"].keys()
    found = json_of(capsys, ["generate", chat, "--prompt", "good", "--system", "bad", "--max-new-tokens", "3"])
    assert found.keys() == {"prompt", "base", "tuned"}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--rows", "0"], "at least 1"),
        (["--split", "tset"], "use train, validation or test"),
        (["--split", "validation"], "no part 'validation'"),
        (["--items", "/nowhere/at/all.jsonl"], "no such directory"),
        (["--generate"], "generates no text"),
        (["--task", "clasification"], "did you mean 'classification'"),
        (["--dtype", "float8"], "float32"),
        (["--itmes", "x"], "did you mean '--items'"),
        (["--data", "nowhere.csv"], "no such file"),
    ],
)
def test_evaluate_mistakes(classifier, tmp_path, capsys, words, match) -> None:
    refused(["evaluate", classifier, *words], tmp_path, capsys, match)


def test_lm_eval_is_an_extra(writer, tmp_path, capsys, monkeypatch) -> None:
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        refused(["evaluate", writer, "--lm-eval", "arc_easy"], tmp_path, capsys, r"pip install alloralib\[lm-eval\]")
        return
    refused(["evaluate", writer, "--lm-eval", "arc_eesy"], tmp_path, capsys, "arc_easy")
    refused(["evaluate", writer, "--lm-eval", str(tmp_path / "no.yaml")], tmp_path, capsys, "no such task file")
    (tmp_path / "rows.json").write_text(json.dumps([{"q": "the film was", "c": ["good", "bad"], "a": i % 2} for i in range(8)]))
    task = {
        "task": "tiny", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{c}}",
        "doc_to_target": "{{a}}", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(json.dumps(task))
    found = json_of(capsys, ["evaluate", writer, "--lm-eval", str(tmp_path / "tiny.yaml")])
    assert found["lm_eval"]["tuned"]["tiny"]["acc"] == 0.5  # one question, both answers right in turn


# generate


def test_generate(writer, tmp_path, capsys) -> None:
    found = json_of(capsys, ["generate", writer, "--prompt", "good film", "--max-new-tokens", "4"])
    assert found["prompt"] == "good film"
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    capsys.readouterr()
    assert main(["generate", writer, "--prompts", str(tmp_path / "words.txt"), "--max-new-tokens", "4", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["prompt"] for answer in answers] == WORDS
    assert any(answer["base"] != answer["tuned"] for answer in answers)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "good"}\n\n{"prompt": "bad"}\n')
    assert main(["generate", writer, "--prompts", str(prompts), "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("base ") == out.count("tuned ") == 2


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "one of the arguments --prompt --prompts is required"),
        (["--prompts", "nowhere.txt"], "cannot be read"),
        (["--prompt", "x", "--temperature", "-1"], "at least 0"),
        (["--prompt", "x", "--temperature", "nan"], "at least 0"),
        (["--prompt", "x", "--max-new-tokens", "0"], "at least 1"),
        (["--prompt", "x", "--system", "y"], "has no meaning for task causal-lm"),
    ],
)
def test_generate_mistakes(writer, tmp_path, capsys, words, match) -> None:
    refused(["generate", writer, *words], tmp_path, capsys, match)


def test_bad_prompt_files_and_the_wrong_kind_of_run(classifier, tmp_path, capsys) -> None:
    refused(["generate", classifier, "--prompt", "x"], tmp_path, capsys, "generates no text")
    bad = tmp_path / "bad.jsonl"
    for content, match in ((b'{"prompt": "a"}\n{"promt": "b"}\n', "line 2"), (b"\xff\n", "UTF-8"), (b"\n", "no prompts")):
        bad.write_bytes(content)
        refused(["generate", classifier, "--prompts", str(bad)], tmp_path, capsys, match)


# merge and export


def test_merge(writer, tmp_path, capsys, tiny_llama) -> None:
    assert main(["merge", writer, "--output-dir", str(tmp_path / "merged")]) == 0
    assert "20 test rows" not in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), writer).eval()
    batch = AutoTokenizer.from_pretrained(tmp_path / "merged")("good film and bad music", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, adapted(**batch).logits, rtol=1e-4, atol=1e-4)
    refused(["merge", writer, "--output-dir", str(tmp_path / "merged")], tmp_path, capsys, "already exists")


def test_export(classifier, tmp_path, capsys, reviews) -> None:
    found = json_of(capsys, ["export", classifier, "--format", "peft", "--output", str(tmp_path / "clean")])
    assert found["compared_on"] == "8 test rows"
    assert found["difference"] <= found["tolerance"]
    assert not (tmp_path / "clean" / "record.json").exists()
    reviews.unlink()  # without the data, logits are compared on built-in sentences
    found = json_of(capsys, ["export", classifier, "--format", "merged", "--output", str(tmp_path / "merged")])
    assert found["compared_on"] == "built-in sentences"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--format", "ggfu", "--output", "x"], "did you mean 'gguf'"),
        (["--format", "gguf", "--output", "x"], "clone llama.cpp"),
        (["--format", "peft", "--output", "x", "--converter", "y"], "is for --format gguf"),
        (["--format", "peft"], "--output"),
    ],
)
def test_export_mistakes(writer, tmp_path, capsys, monkeypatch, words, match) -> None:
    monkeypatch.delenv("ALLORA_LORA_TO_GGUF", raising=False)
    refused(["export", writer, *words], tmp_path, capsys, match)


@pytest.mark.parametrize(("settings", "match"), [({"method": "asf-lora"}, "ASF-LoRA"), ({"trained": False}, "never trained")])
def test_what_cannot_be_merged(tmp_path, capsys, tiny_llama, reviews, settings, match) -> None:
    lay_out(tmp_path / "run", tiny_llama, "causal-lm", reviews, **settings)
    refused(["merge", str(tmp_path / "run"), "--output-dir", str(tmp_path / "out")], tmp_path, capsys, match)


# inspect


def test_inspect(writer, tmp_path, capsys, tiny_llama) -> None:
    found = json_of(capsys, ["inspect", writer, "--model", tiny_llama, "--picture", str(tmp_path / "norms.png")])
    assert (found["method"], found["r"], found["eta"], found["trained"]) == ("allora", 4, 2.0, True)
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")
    tensors = load_file(tmp_path / "run" / "adapter_model.safetensors")
    base = load_file(tiny_llama + "/model.safetensors")
    product = 1.0
    for layer in found["layers"]:
        A, B = (tensors[f"base_model.model.{layer['name']}.lora_{side}.weight"] for side in "AB")
        norms = (B @ A).norm(dim=1)
        assert layer["mean_row"] == pytest.approx(norms.mean().item(), rel=1e-4)
        assert layer["max_row"] == pytest.approx(norms.max().item(), rel=1e-4)
        assert layer["smallest_scale"] == pytest.approx(scale(row_norms(A, B), 2.0).min().item(), rel=1e-4)
        W = base[layer["name"] + ".weight"]
        two = lambda m: float(torch.linalg.matrix_norm(m, ord=2))  # noqa: E731
        product *= (two(W) + two(B @ A)) / two(W)
    assert found["ripple"]["growth"] == pytest.approx(product, rel=1e-4)
    assert main(["inspect", writer]) == 0
    out = capsys.readouterr().out
    assert "ripple" not in out
    assert "model.layers.1.mlp.down_proj" in out


def test_inspect_loads_no_model(writer) -> None:
    code = (
        "import sys, transformers\n"
        "from alloralib.cli.main import main\n"
        "transformers.PreTrainedModel.from_pretrained = lambda *a, **k: 1 / 0\n"
        f"sys.exit(main(['inspect', {writer!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_inspect_says_untrained(tmp_path, capsys, tiny_llama, reviews) -> None:
    lay_out(tmp_path / "run", tiny_llama, "causal-lm", reviews, trained=False)
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert "untrained: BA = 0" in capsys.readouterr().out


def damage(run, kind: str) -> None:
    weights = run / "adapter_model.safetensors"
    if kind == "no config":
        (run / "adapter_config.json").unlink()
    elif kind == "config not json":
        (run / "adapter_config.json").write_text("{")
    elif kind == "config of something else":
        (run / "adapter_config.json").write_text('{"peft_type": "IA3", "r": 1}')
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "header":
        weights.write_bytes(b"\xff" * 64)
    elif kind == "pickle":
        weights.rename(run / "adapter_model.bin")
    elif kind == "no weights":
        weights.unlink()
    elif kind == "one factor":
        tensors = load_file(weights)
        del tensors[next(key for key in tensors if "lora_B" in key)]
        save_file(tensors, weights)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("no config", r"no adapter_config\.json[\s\S]*put the adapter_config\.json"),
        ("config not json", "damaged"),
        ("config of something else", "a IA3 adapter"),
        ("truncated", "damaged"),
        ("header", "damaged"),
        ("pickle", r"no adapter_model\.safetensors[\s\S]*pickle"),
        ("no weights", r"no adapter_model\.safetensors"),
        ("one factor", "one factor only"),
    ],
)
def test_a_damaged_adapter_is_named(writer, tmp_path, capsys, kind: str, match: str) -> None:
    damage(tmp_path / "run", kind)
    refused(["inspect", writer], tmp_path, capsys, match)
    if kind not in ("truncated", "header", "one factor"):  # those are found when the weights are read
        refused(["generate", writer, "--prompt", "x"], tmp_path, capsys, match)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["nowhere"], "no such directory"),
        (["RUN", "--picture", "x.docx"], "unknown kind of picture"),
        (["RUN", "--picture", "/nowhere/x.png"], "no such directory"),
        (["RUN", "--model", "MINILM"], "not a model directory|no config.json|no matrix"),
    ],
)
def test_inspect_mistakes(writer, tmp_path, capsys, words, match) -> None:
    (tmp_path / "MINILM").mkdir()
    words = [{"RUN": writer, "MINILM": str(tmp_path / "MINILM")}.get(word, word) for word in words]
    refused(["inspect", *words], tmp_path, capsys, match)


def test_inspect_reads_convolutions_embeddings_and_plain_lora(tmp_path) -> None:
    from ..adapters.models import Convs, gpt2

    for number, (base, method, settings) in enumerate(
        [
            (Convs(), "allora", {"target_modules": ["one", "two", "three"]}),
            (gpt2(), "rslora", {"target_modules": ["wte", "c_attn"], "rank_pattern": {"c_attn": 2}}),
        ]
    ):
        model = get_peft_model(base, make_config(method, r=3, **settings))
        randomise(model)
        model.save_pretrained(tmp_path / str(number))
        found = inspect_adapter(tmp_path / str(number))
        assert found.method == method
        modules = dict(model.get_base_model().named_modules())
        for layer in found.layers:
            delta = modules[layer.name].get_delta_weight("default").detach()
            rows = delta.T if layer.name.endswith(("wte", "c_attn")) else delta.flatten(1)
            assert layer.max_row * layer.scaling == pytest.approx(rows.norm(dim=1).max().item(), rel=1e-4)


def test_help_of_every_verb_loads_no_torch() -> None:
    code = (
        "import sys\nfrom alloralib.cli.main import main\n"
        "try:\n    main([sys.argv[1], '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'datasets', 'peft'} & sys.modules.keys()"
    )
    for verb in set(VERBS) - {"train"}:
        done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_the_nearest_flag_is_looked_for_among_the_flags_of_the_verb() -> None:
    for name, verb in VERBS.items():
        parser = argparse.ArgumentParser()
        verb.add_arguments(parser)
        declared = {word for action in parser._actions for word in action.option_strings if word.startswith("--")}
        assert set(build_parser(name)[1][name].flags()) == declared, name


def test_freed_memory_is_kept_before_a_verb_runs(monkeypatch, capsys) -> None:
    printed_before = []
    monkeypatch.setattr("alloralib.cli.main.keep_freed_memory", lambda: printed_before.append(capsys.readouterr().out))
    assert main(["tasks"]) == 0
    assert printed_before == [""]
    assert capsys.readouterr().out
