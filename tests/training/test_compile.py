"""A compiled run trains by the same rule, writes the same files, is resumed bit by bit, and reports what compiling costs.

Most of it needs no code to be generated: the backend "eager" has a block traced, the rule's backward pass too, under the
same guards as inductor's, and runs what was traced. The run that is resumed goes through inductor and its C++.
"""

import itertools
import shutil
from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import Trainer, ViTConfig, ViTForImageClassification

from alloralib import AlloraConfig
from alloralib.cli.main import main
from alloralib.errors import ModelError, TrainingError
from alloralib.ops import matmul, scale
from alloralib.records import RunRecord
from alloralib.training import compiling
from alloralib.training.config import RunConfig
from alloralib.training.run import train

from ..adapters.models import bert, gpt2, gradients, llama, mixtral, randomise
from ..cli.test_train import refused

TRACED = {"backend": "eager", "dynamic": True, "fullgraph": True}


@pytest.fixture(autouse=True)
def _fresh():
    """The counters, and what was compiled, are of the whole process."""
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def traced(monkeypatch) -> None:
    monkeypatch.setattr(compiling, "COMPILER", TRACED)


def programs() -> int:
    return counters["stats"]["unique_graphs"]


def adapted(model: nn.Module, targets: list[str] | str = "all-linear") -> nn.Module:
    model = get_peft_model(model, AlloraConfig(r=3, target_modules=targets)).train()
    randomise(model)
    return model


def words(length: int) -> dict[str, Tensor]:
    ids = torch.randint(1, 64, (2, length), generator=torch.Generator().manual_seed(length))
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def sentences(length: int) -> dict[str, Tensor]:
    return {"input_ids": words(length)["input_ids"], "labels": torch.tensor([0, 1])}


def pictures(length: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(length, 3, 8, 8, generator=torch.Generator().manual_seed(length))}


def vit() -> nn.Module:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ViTForImageClassification(ViTConfig(**size, **dropout, image_size=8, patch_size=4))


def assert_same_gradients(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    compiled = gradients(model, inputs)
    with compiling.eagerly():
        eager = gradients(model, inputs)
    assert compiled.keys() == eager.keys()
    for name, grad in eager.items():
        torch.testing.assert_close(compiled[name], grad, rtol=1e-3, atol=2e-5 * grad.abs().max().item(), msg=name)


@pytest.mark.parametrize(
    ("build", "inputs", "checkpointing"),
    [
        (lambda: llama(layers=4), words, False), (lambda: llama(layers=4), words, True), (gpt2, words, False),
        (bert, sentences, False), (vit, pictures, False),
    ],
    ids=["llama", "llama, checkpointing", "gpt2", "bert", "vit"],
)  # fmt: skip
def test_gradients_are_those_of_the_uncompiled_model(
    build: Callable[[], nn.Module], inputs: Callable[[int], dict[str, Tensor]], checkpointing: bool, traced
) -> None:
    model = adapted(build())
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    names = list(model.state_dict())
    compiling.compile_blocks(model)
    assert list(model.state_dict()) == names
    for length in (9, 5, 14):
        assert_same_gradients(model, inputs(length))
        randomise(model, seed=length)  # the factors are read anew each time
    assert programs() == 1, "one program serves all blocks and lengths"


def test_layers_that_are_large_enough_for_onednn_compile_whole(traced, monkeypatch) -> None:
    monkeypatch.setattr(matmul, "LEAST_PRODUCTS", 1)
    monkeypatch.setattr(matmul, "by_default", lambda: True)
    model = adapted(llama(layers=3))
    compiling.compile_blocks(model)
    assert_same_gradients(model, words(9))
    assert programs() == 1


def test_a_compiled_backward_pass_that_loses_the_rule_is_noticed(traced, monkeypatch) -> None:
    model = adapted(llama(), ["q_proj", "down_proj"])
    compiling.compile_blocks(model)
    assert_same_gradients(model, words(9))

    torch.compiler.reset()
    right = scale.scale

    def lost(norms: Tensor, eta: float) -> Tensor:
        return torch.full_like(norms, eta) if torch.compiler.is_compiling() else right(norms, eta)

    monkeypatch.setattr(scale, "scale", lost)
    with pytest.raises(AssertionError, match="lora_"):
        assert_same_gradients(model, words(9))


def test_the_first_trained_block_and_those_before_it_are_left_out(traced) -> None:
    model = get_peft_model(llama(layers=5), AlloraConfig(r=2, target_modules=r".*layers\.[2-4]\.mlp\.up_proj"))
    layers = model.get_base_model().model.layers
    assert compiling.compile_blocks(model) == list(layers[3:])


def test_a_model_without_blocks_to_compile_is_refused(traced) -> None:
    with pytest.raises(ModelError, match="nothing to compile"):
        compiling.compile_blocks(adapted(llama(layers=1)))


def test_blocks_that_cannot_be_compiled_whole_are_refused(traced) -> None:
    model = adapted(mixtral())
    compiling.compile_blocks(model)

    def step(rows: list[int]) -> float:
        gradients(model, words(9))
        return 1.0

    with pytest.raises(TrainingError, match="compile failed") as failed:
        compiling.measure(step, [[0]], [0])
    assert "leave out --compile" in str(failed.value)


def test_one_batch_for_each_program() -> None:
    lengths = [9, 9, 7, 7, 8, 8, 5]
    assert compiling.programs([[0, 1], [2, 3], [4, 2], [4, 5], [6]], lengths) == [[0, 1], [4, 2]]
    assert compiling.programs([[6], [5]], lengths) == [[6]]  # a batch size of 1


@pytest.fixture
def language(tiny_llama, reviews, tmp_path) -> list[str]:
    return [
        "train", "--task", "causal-lm", "--model", tiny_llama, "--data", str(reviews), "--prompt-column", "prompt",
        "--completion-column", "completion", "--r", "2", "--max-steps", "9", "--batch-size", "4", "--validation-share", "0.2",
        "--evaluate-every", "4", "--output-dir", str(tmp_path / "run"), "--optimizer", "sgd",
    ]  # fmt: skip


def test_a_run_says_what_compiling_costs_and_ends_where_the_uncompiled_one_does(
    language, tmp_path, traced, monkeypatch, capsys
) -> None:
    after_preflight: list[int] = []
    measure = compiling.measure

    def spy(*args):
        found = measure(*args)
        after_preflight.append(programs())
        return found

    monkeypatch.setattr(compiling, "measure", spy)
    assert main([*language, "--compile"]) == 0
    said = capsys.readouterr().err
    assert "  compiling      takes" in said
    assert after_preflight == [2], "one program with padding and one without"
    assert programs() == 2, "training, validation and the tests compile nothing more"
    assert main([*language, "--output-dir", str(tmp_path / "eager")]) == 0
    run, eager = tmp_path / "run", tmp_path / "eager"
    ours, theirs = (load_file(path / "adapter_model.safetensors") for path in (run, eager))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-6, msg=name)
    cost = RunRecord.read(run / "record.json").preflight["cost"]
    assert cost["compile_seconds"] > 0
    assert cost["break_even_steps"] == compiling.break_even(
        cost["compile_seconds"], cost["eager_step_seconds"] - cost["step_seconds"]
    )
    pays = cost["break_even_steps"] is not None and cost["break_even_steps"] <= 9
    assert pays or "compiling does not pay in this run" in said
    assert "compile_seconds" not in RunRecord.read(eager / "record.json").preflight["cost"]
    assert main(["merge", str(run), "--output-dir", str(tmp_path / "merged")]) == 0


def test_a_machine_without_a_compiler_is_refused(language, tmp_path, capsys) -> None:
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        refused([*language, "--compile"], tmp_path, capsys, r"needs a C\+\+ compiler")


def test_a_compiler_that_fails_is_reported(language, tmp_path, capsys, monkeypatch) -> None:
    def broken(graph, inputs):
        raise RuntimeError("cannot open Python.h")

    monkeypatch.setattr(compiling, "COMPILER", TRACED | {"backend": broken})
    message = refused([*language, "--compile"], tmp_path, capsys, "torch.compile failed")
    assert "Python.h" in message


def test_a_compiled_run_is_resumed_bit_by_bit(tiny_llama, reviews, tmp_path, monkeypatch) -> None:
    """With inductor itself, dropout and all; what a kill leaves behind is copied from the run that goes on."""
    settings = {
        "task": "classification", "model": tiny_llama, "data": str(reviews), "method": "allora-d", "r": 2, "max_steps": 5,
        "batch_size": 6, "checkpoint_every": 2, "compile": True, "max_length": 4, "target_modules": ["up_proj"],
    }  # fmt: skip
    step, calls = Trainer.training_step, itertools.count(1)

    def watched(*args, **kwargs):
        if next(calls) == 4:
            shutil.copytree(tmp_path / "whole.unfinished", tmp_path / "killed.unfinished")
        return step(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", watched)
        train(RunConfig.of(settings | {"output_dir": str(tmp_path / "whole")}))
    assert programs() == 1
    train(RunConfig.of(settings | {"output_dir": str(tmp_path / "killed")}), resume=True)
    assert programs() == 2, "it is compiled anew"
    whole, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
