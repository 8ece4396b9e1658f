"""Packed rows give the loss and gradients of padded ones, and models that cannot be packed are padded."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification, MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from alloralib import AlloraConfig, fast_paths
from alloralib.evaluation.next_token import IGNORED, score_next_tokens
from alloralib.records import RunRecord
from alloralib.training import packing
from alloralib.training.config import RunConfig
from alloralib.training.run import train

from ..adapters.models import bert, gpt2, llama, mixtral, randomise

CPU = torch.device("cpu")
LENGTHS, PROMPTS = [3, 17, 5, 9, 1, 12, 6, 4], [1, 4, 2, 9, 0, 3, 6, 2]


def batch(lengths: list[int], prompts: list[int] | None = None, vocabulary: int = 60) -> tuple[dict[str, Tensor], Tensor]:
    """Random rows with padding on the right, and their labels, without those of the prompts."""
    g = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(1, vocabulary, (len(lengths), max(lengths)), generator=g)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    labels = ids.masked_fill(mask == 0, IGNORED)
    for row, prompt in enumerate(prompts or []):
        labels[row, :prompt] = IGNORED
    return {"input_ids": ids * mask, "attention_mask": mask}, labels


def mistral() -> MistralForCausalLM:
    """Rows longer than its window."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=4,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


def llama_classifier() -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(llama().config).eval()


@given(st.lists(st.integers(1, 30), min_size=2, max_size=12))
def test_the_tokens_are_put_back_where_they_were(lengths: list[int]) -> None:
    """Against a slow twin, which goes row by row."""
    inputs, _ = batch(lengths)
    rows = packing.rows_of(inputs)
    padded = max(lengths) * len(lengths)
    assert (rows is None) == (padded <= (1 + packing.MAX_PADDING) * sum(lengths))
    if rows is None:
        return
    x = torch.randn(len(lengths), max(lengths), 3, dtype=torch.float64, requires_grad=True)
    packed = rows.pack(x)
    expected = torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])
    assert torch.equal(packed[0], expected)
    assert torch.equal(rows.unpack(packed), x * inputs["attention_mask"].unsqueeze(-1))
    shared = torch.randn(1, max(lengths), 2)  # positions, which are the same for all rows
    assert torch.equal(rows.pack(shared)[0], torch.cat([shared[0, :length] for length in lengths]))


def test_packing_has_the_gradients_of_its_formula() -> None:
    rows = packing.rows_of(batch([3, 1, 2])[0])
    assert rows is not None
    x = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rows.pack, x)
    assert torch.autograd.gradcheck(rows.unpack, torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradgradcheck(rows.pack, x)


def test_further_outputs_of_a_block_are_passed_on() -> None:
    rows = packing.rows_of(batch([3, 1, 2])[0])
    assert rows is not None
    packed = torch.randn(1, 6, 2)
    hidden, more = packing._leave(nn.Identity(), (), {"packed_rows": rows}, (packed, "more"))
    assert torch.equal(hidden, rows.unpack(packed))
    assert more == "more"


def widths(model, monkeypatch) -> list[tuple[int, ...]]:
    """Batch and length of what every last block sees from now on."""
    block = [module for module in model.modules() if isinstance(module, packing.GradientCheckpointingLayer)][-1]
    seen: list[tuple[int, ...]] = []
    right = block.forward

    @functools.wraps(right)
    def forward(hidden, *args, **kwargs):
        seen.append(tuple(hidden.shape[:2]))
        return right(hidden, *args, **kwargs)

    monkeypatch.setattr(block, "forward", forward)
    return seen


@pytest.mark.parametrize("checkpointing", [None, False, True])
@pytest.mark.parametrize("make", [llama, gpt2, mixtral, mistral])
def test_scores_and_gradients_are_those_of_padded_rows(make, checkpointing: bool | None, monkeypatch) -> None:
    base = make()
    base.get_output_embeddings().weight.data.mul_(10)
    model = get_peft_model(base, AlloraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    randomise(model)
    if checkpointing is not None:
        model.train()
        base.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        base.enable_input_require_grads()
    inputs, labels = batch(LENGTHS, PROMPTS)
    seen = widths(base, monkeypatch)
    parameters = [p for p in model.parameters() if p.requires_grad]
    weight = torch.linspace(0.5, 2, int((labels[:, 1:] != IGNORED).sum()))  # so that no row can take another's place
    found = {}
    for on in (True, False):
        with fast_paths(packed=on):
            given = packing.without_padding(base, inputs, call=base)
            assert ("packed_rows" in given) == on
            seen.clear()
            loss, mask, _ = score_next_tokens(base, given, labels)
            model.zero_grad()
            (loss * weight).sum().backward()
        assert set(seen) == {(1, sum(LENGTHS)) if on else (len(LENGTHS), max(LENGTHS))}
        found[on] = [loss, *(p.grad for p in parameters)]
        assert torch.equal(mask, labels[:, 1:] != IGNORED)
    torch.testing.assert_close(found[True], found[False], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [bert, llama_classifier])
def test_a_classifiers_loss_and_gradients_are_those_of_padded_rows(make, monkeypatch) -> None:
    base = make()
    model = get_peft_model(base, AlloraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS"))
    randomise(model)
    inputs = batch(LENGTHS)[0] | {"labels": torch.arange(len(LENGTHS)) % 2}
    seen = widths(base, monkeypatch)
    found = {}
    for on in (True, False):
        with fast_paths(packed=on):
            given = packing.without_padding(base, inputs, call=model)
            seen.clear()
            output = model(**given)
        model.zero_grad()
        output.loss.backward()
        assert seen == [(1, sum(LENGTHS)) if on else (len(LENGTHS), max(LENGTHS))]
        found[on] = [output.logits, *(p.grad for p in model.parameters() if p.requires_grad)]
    torch.testing.assert_close(found[True], found[False], rtol=1e-4, atol=1e-6)


def untouched(model) -> bool:
    """Whether a model's attention and blocks are as they were before the trial."""
    hooks = any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    return model.config._attn_implementation == "sdpa" and not hooks


def test_attention_across_rows_is_caught(monkeypatch) -> None:
    """The rows left side by side, with no mask but the order of the tokens."""

    def leaking(module, query, key, value, mask, packed_rows=None, **kwargs):
        return packing.sdpa_attention_forward(module, query, key, value, None if packed_rows else mask, **kwargs)

    monkeypatch.setitem(packing.AttentionInterface._global_mapping, packing.ATTENTION, leaking)
    model = llama()
    assert packing.why_not_packed(model, model, CPU) == "the model gives other logits on packed rows"
    assert untouched(model)


def test_tokens_that_change_places_are_caught(monkeypatch) -> None:
    right = packing.Rows.unpack
    monkeypatch.setattr(packing.Rows, "unpack", lambda rows, x: right(rows, x.roll(1, dims=1) if x.dim() == 3 else x))
    model = llama()
    assert packing.why_not_packed(model, model, CPU) == "the model gives other logits on packed rows"


def test_positions_of_the_padded_batch_are_caught(monkeypatch) -> None:
    """As if the packed row's tokens were the first ones of the batch."""

    def first(kind, change, value):
        return tuple(x.expand(4, -1, -1).flatten(0, 1)[None, :14] for x in value) if isinstance(value, tuple) else value

    monkeypatch.setattr(packing, "tree_map_only", first)
    model = llama()
    for block in model.model.layers:
        block.self_attn.q_proj.weight.data.mul_(50)  # a new model depends little on positions
    assert packing.why_not_packed(model, model, CPU) == "the model gives other logits on packed rows"


def test_a_model_that_drops_the_keyword_is_padded() -> None:
    model = llama()

    def deaf(packed_rows=None, **inputs):
        return model(**inputs)

    assert packing.why_not_packed(model, deaf, CPU) == "the model does not tell its blocks which tokens there are"
    assert untouched(model)


def test_a_model_that_fails_on_it_is_padded() -> None:
    model = llama().train()

    def failing(**inputs):
        if "packed_rows" in inputs:
            raise KeyError("packed_rows")
        return model(**inputs)

    inputs, _ = batch([3, 17, 5, 9])
    assert "KeyError" in str(packing.why_not_packed(model, failing, CPU))
    assert packing.without_padding(model, inputs, call=failing) is inputs
    assert model.training
    assert untouched(model)


def test_a_state_that_runs_along_the_row_is_padded() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=60, hidden_size=16, state_size=4, num_hidden_layers=2))
    assert packing.why_not_packed(model, model, CPU) is not None
    inputs, _ = batch([3, 17, 5, 9])
    assert packing.without_padding(model, inputs, call=model) is inputs


def test_reasons_not_to_pack_are_given() -> None:
    routed, compiled, eager, dropping = mixtral(), llama(), llama(), llama()
    routed.config.output_router_logits = True
    compiled.model.layers[1].compile()
    eager.set_attn_implementation("eager")
    dropping.config.decoder_layerdrop = 0.1
    for model, reason in ((routed, "router"), (compiled, "compiled"), (eager, "eager"), (dropping, "at random")):
        assert reason in str(packing.why_not_packed(model, model, CPU))


def test_a_model_with_another_attention_chosen_later_is_padded() -> None:
    model = llama()
    inputs, _ = batch(LENGTHS)
    assert "packed_rows" in packing.without_padding(model, inputs, call=model)
    model.set_attn_implementation("eager")
    assert packing.without_padding(model, inputs, call=model) is inputs


def test_a_prepared_model_answers_as_before() -> None:
    """Padded rows, and generation token by token."""
    prepared, model = llama(), llama()
    assert packing.why_not_packed(prepared, prepared, CPU) is None
    inputs, _ = batch(LENGTHS)
    assert torch.equal(prepared(**inputs).logits, model(**inputs).logits)
    grown = [m.generate(**inputs, max_new_tokens=5, do_sample=False) for m in (prepared, model)]
    assert torch.equal(*grown)


def test_a_trial_changes_neither_the_model_nor_the_random_state() -> None:
    model = llama().train()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    before = torch.get_rng_state()
    assert packing.why_not_packed(model, model, CPU) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("what", ["left", "no-mask", "even", "empty", "embeddings"])
def test_unknown_forms_of_batches_are_padded(what: str) -> None:
    inputs, _ = batch([9, 2, 3, 8])
    if what == "left":
        inputs = {key: value.flip(1) for key, value in inputs.items()}
    elif what == "no-mask":
        del inputs["attention_mask"]
    elif what == "even":
        inputs, _ = batch([9, 9, 9, 8])
    elif what == "empty":
        inputs["attention_mask"][1] = 0
    else:
        inputs["inputs_embeds"] = inputs.pop("input_ids").unsqueeze(-1).expand(-1, -1, 32)
    assert packing.rows_of(inputs) is None


TEXTS = ["good film", "bad", "the story is great and the actor is good and the scene was fine", "awful plot was bad"] * 4


@pytest.fixture
def settings(tiny_llama, tmp_path) -> dict:
    return {
        "model": tiny_llama, "data": str(tmp_path / "rows.csv"), "output_dir": str(tmp_path / "run"), "r": 2, "max_steps": 3,
        "batch_size": 8, "overwrite": True, "optimizer": "sgd", "learning_rate": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("task", ["causal-lm", "classification"])
def test_a_run_packs_and_its_record_does_not_change(task: str, accumulation: int, settings, tmp_path, monkeypatch) -> None:
    columns = ("prompt", "completion") if task == "causal-lm" else ("text", "label")
    lines = [f"{text},{' fine' if len(text) > 9 else ' no'}" for text in TEXTS]
    (tmp_path / "rows.csv").write_text("\n".join([",".join(columns), *lines]) + "\n", encoding="utf-8")
    settings |= {"task": task, "gradient_accumulation": accumulation}
    if task == "causal-lm":
        settings |= {"prompt_column": "prompt", "completion_column": "completion"}
    shapes: list[int] = []
    right = LlamaDecoderLayer.forward

    def seen(self, hidden, *args, **kwargs):
        if torch.is_grad_enabled():
            shapes.append(hidden.shape[0] * hidden.shape[1])
        return right(self, hidden, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", seen)
    found = {}
    for on in (True, False):
        shapes.clear()
        with fast_paths(packed=on):
            train(RunConfig.of(settings))
        found[on] = RunRecord.read(f"{settings['output_dir']}/record.json"), list(shapes)
    packed, padded = found[True][1], found[False][1]
    assert packed[0] < padded[0]  # the preflight's longest batch
    assert sum(packed) < 0.8 * sum(padded)
    assert len(packed) == len(padded)
    for a, b in zip(found[True][0].history, found[False][0].history, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
