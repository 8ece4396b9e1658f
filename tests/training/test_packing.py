"""Short rows side by side: the same scores and gradients, row by row, less padding, and only where a model keeps rows apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, MambaConfig, MambaForCausalLM

from alloralib import fast_paths
from alloralib.evaluation.next_token import IGNORED, score_next_tokens
from alloralib.records import RunRecord
from alloralib.training import packing
from alloralib.training.config import RunConfig
from alloralib.training.run import train

from ..adapters.models import gpt2, llama, mixtral

CPU = torch.device("cpu")
CONFIG = LlamaConfig(hidden_size=64)


def batch(lengths: list[int], prompts: list[int] | None = None, vocabulary: int = 60) -> tuple[dict[str, Tensor], Tensor]:
    """Random rows with padding on the right, and their labels, without those of the prompts."""
    g = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(1, vocabulary, (len(lengths), max(lengths)), generator=g)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    labels = ids.masked_fill(mask == 0, IGNORED)
    for row, prompt in enumerate(prompts or []):
        labels[row, :prompt] = IGNORED
    return {"input_ids": ids * mask, "attention_mask": mask}, labels


@given(st.lists(st.integers(1, 80), min_size=1, max_size=40), st.integers(8, 2000))
def test_every_row_is_in_one_bin_and_there_is_less_padding(lengths: list[int], hidden: int) -> None:
    padded = max(lengths) * len(lengths)
    bins = packing.arrange(lengths, hidden)
    if padded <= (1 + packing.MOST_PADDING) * sum(lengths):
        assert bins is None
    if bins is not None:
        assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
        width = max(sum(lengths[row] for row in rows) for rows in bins)  # not `widest_bin`: its twin
        assert width == packing.widest_bin(bins, lengths)
        assert sum(lengths) <= width * len(bins) < padded


def test_no_bin_is_wider_than_the_model_has_positions() -> None:
    lengths = [10, 60, 20, 40, 30, 50, 15, 35]
    for widest in (60, 100, 200):
        bins = packing.arrange(lengths, 8192, widest)
        assert bins is not None
        assert 60 <= max(sum(lengths[row] for row in rows) for rows in bins) <= widest
    assert packing.arrange(lengths, 8192, 59) is None


def test_wide_rows_are_made_where_attention_is_cheap_beside_the_layers() -> None:
    lengths = [10, 60, 20, 40, 30, 50, 15, 35]
    narrow, wide = packing.arrange(lengths, 64), packing.arrange(lengths, 8192)
    assert narrow is not None
    assert wide is not None
    assert len(wide) < len(narrow)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=2, max_size=12))
def test_tokens_keep_their_positions_and_labels(rows: list[tuple[int, int]]) -> None:
    """Against a slow twin, which takes the batch row by row."""
    lengths = [length for length, _ in rows]
    inputs, labels = batch(lengths, [prompt for _, prompt in rows])
    packed = packing.pack(inputs, labels, CONFIG)
    if packed is None:
        return
    pairs: list[tuple[int, int, int]] = []  # what is learnt: position, the token before, the label
    for row, length in enumerate(lengths):
        ids = inputs["input_ids"][row].tolist()
        pairs += [(t, ids[t - 1], label) for t in range(1, length) if (label := int(labels[row, t])) != IGNORED]
    learnt = packed.labels[:, 1:] != IGNORED
    columns = (packed.inputs["position_ids"][:, 1:], packed.inputs["input_ids"][:, :-1], packed.labels[:, 1:])
    got = [column[learnt][packed.order].tolist() for column in columns]
    assert list(zip(*got, strict=True)) == pairs


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [llama, gpt2, mixtral])
def test_scores_and_gradients_are_those_of_padded_rows(make, attention: str) -> None:
    model = make()
    model.set_attn_implementation(attention)
    model.get_output_embeddings().weight.data.mul_(10)
    inputs, labels = batch([3, 17, 5, 9, 1, 12, 6, 4], [1, 4, 2, 9, 0, 3, 6, 2])
    assert packing.pack(inputs, labels, model.config) is not None
    parameters = [
        p for name, p in model.named_parameters() if "norm" in name or "ln" in name or "q_proj" in name or "c_attn" in name
    ]
    weight = torch.linspace(0.5, 2, int((labels[:, 1:] != IGNORED).sum()))  # so that no row can take another's place
    found = {}
    for on in (True, False):
        with fast_paths(packed=on):
            scores, mask, _ = packing.score_batch(model, dict(inputs), labels, call=model)
        found[on] = [*scores[:2], *torch.autograd.grad((scores.loss * weight).sum(), parameters)]
        assert torch.equal(mask, labels[:, 1:] != IGNORED)
    torch.testing.assert_close(found[True], found[False], rtol=1e-4, atol=1e-5)


def test_a_model_that_looks_over_the_border_is_padded() -> None:
    model = llama()
    assert packing.why_not_packed(model, model, CPU) is None

    def leaking(**inputs):  # a mask of its own, made of nothing but the order of the tokens
        if "position_ids" in inputs:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return model(**inputs)

    other = llama()
    assert "other logits" in str(packing.why_not_packed(other, leaking, CPU))


def test_a_model_that_fails_on_it_is_padded() -> None:
    model = llama().train()

    def failing(**inputs):
        if "attention_mask" not in inputs:
            raise KeyError("attention_mask")
        return model(**inputs)

    inputs, labels = batch([3, 17, 5, 9])
    assert "KeyError" in str(packing.why_not_packed(model, failing, CPU))
    found = packing.score_batch(model, dict(inputs), labels, call=failing)
    expected = score_next_tokens(model, dict(inputs), labels)
    assert torch.equal(found.scores.loss, expected.scores.loss)
    assert model.training


def test_a_state_that_runs_along_the_row_is_padded() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=60, hidden_size=16, state_size=4, num_hidden_layers=2))
    assert packing.why_not_packed(model, model, CPU) == "the model takes no positions"


def test_a_routers_loss_and_compiled_blocks_are_left_alone() -> None:
    routed, compiled = mixtral(), llama()
    routed.config.output_router_logits = True
    compiled.model.layers[1].compile()
    assert "router" in str(packing.why_not_packed(routed, routed, CPU))
    assert "compiled" in str(packing.why_not_packed(compiled, compiled, CPU))


def test_a_trial_leaves_the_model_and_chance_as_they_were() -> None:
    model = llama().train()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    before = torch.get_rng_state()
    assert packing.why_not_packed(model, model, CPU) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("what", ["left", "no-mask", "positions", "even"])
def test_what_is_not_known_is_padded(what: str) -> None:
    inputs, labels = batch([9, 2, 3, 8])
    if what == "left":
        inputs = {key: value.flip(1) for key, value in inputs.items()}
    elif what == "no-mask":
        del inputs["attention_mask"]
    elif what == "positions":
        inputs["position_ids"] = torch.arange(9).expand(4, 9)
    else:
        inputs, labels = batch([9, 9, 9, 8])
    assert packing.pack(inputs, labels, CONFIG) is None


@pytest.fixture
def settings(tiny_llama, tmp_path) -> dict:
    rows = tmp_path / "rows.csv"
    texts = ["good film", "bad", "the story is great and the actor is good and the scene was fine", "awful plot was bad"] * 4
    rows.write_text("prompt,completion\n" + "".join(f"{text}, fine\n" for text in texts), encoding="utf-8")
    return {
        "task": "causal-lm", "model": tiny_llama, "data": str(rows), "output_dir": str(tmp_path / "run"), "r": 2,
        "max_steps": 3, "batch_size": 8, "prompt_column": "prompt", "completion_column": "completion", "overwrite": True,
        "optimizer": "sgd", "learning_rate": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_packs_and_its_record_does_not_change(accumulation: int, settings, monkeypatch) -> None:
    settings |= {"gradient_accumulation": accumulation}
    shapes: list[tuple[int, ...]] = []
    right = nn.Embedding.forward

    def seen(self, ids):
        if torch.is_grad_enabled():
            shapes.append(tuple(ids.shape))
        return right(self, ids)

    monkeypatch.setattr(nn.Embedding, "forward", seen)
    found = {}
    for on in (True, False):
        shapes.clear()
        with fast_paths(packed=on):
            train(RunConfig.of(settings))
        found[on] = RunRecord.read(f"{settings['output_dir']}/record.json"), [rows * width for rows, width in shapes]
    assert sum(found[True][1]) < 0.8 * sum(found[False][1])
    for a, b in zip(found[True][0].history, found[False][0].history, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_rows_that_change_places_are_told_apart(monkeypatch) -> None:
    """Without their order, scores are given to other tokens; a weighted sum sees it, a run's mean cannot."""
    model = llama()
    inputs, labels = batch([3, 17, 5, 9, 4, 12])
    right = packing.score_batch(model, dict(inputs), labels, call=model).scores.loss
    pack = packing.pack
    monkeypatch.setattr(packing, "pack", lambda *args: (p := pack(*args)) and p._replace(order=torch.arange(len(p.order))))
    wrong = packing.score_batch(model, dict(inputs), labels, call=model).scores.loss
    assert not torch.allclose(wrong, right, rtol=1e-3)
    torch.testing.assert_close(wrong.sort().values, right.sort().values, rtol=1e-4, atol=1e-5)
