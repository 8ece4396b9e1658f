"""Adapters in the first blocks of a transformer: exact identities, matched learning rates, refusals."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen2Tokenizer,
)

from alloralib.errors import ModelError
from paper.catalogue import load
from paper.data import StudyData
from paper.held_norm import HeldNorm
from paper.mlp import batches
from paper.ripple_transformer import AdaptedBlocks, Rows, blocks_of, work
from paper.run import run_study

from ..places import data_dir
from ..tiny import bytes_of, save, word_pieces

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_labels": 3, "pad_token_id": 0}


def bert(vocab_size=64, layers=3):
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=vocab_size, num_hidden_layers=layers, **SMALL)).eval()


def qwen2(vocab_size=64, layers=3):
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=vocab_size, num_hidden_layers=layers, num_key_value_heads=2, **SMALL)
    return Qwen2ForSequenceClassification(config).eval()


MODELS = pytest.mark.parametrize("make", [bert, qwen2])
NORMS = pytest.mark.parametrize("held", [False, True])


def rows(count=12, length=7):
    g = torch.Generator().manual_seed(1)
    mask = (torch.arange(length) < torch.randint(3, length + 1, (count, 1), generator=g)).long()
    return Rows({"input_ids": torch.randint(1, 64, (count, length), generator=g) * mask, "attention_mask": mask},
                torch.arange(count) % 3)  # fmt: skip


def adapted(make, depth, held, moved=True):
    net = AdaptedBlocks(make().base_model, depth, held=held, r=2, eta=2.0, seed=0)
    g = torch.Generator().manual_seed(2)
    net.fix_head(rows(), 3, g)
    if moved:
        with torch.no_grad():
            for p in net.factors:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return net


@MODELS
@NORMS
def test_one_block_has_no_interaction_and_more_have(make, held) -> None:
    assert adapted(make, 1, held).measure(rows())["interaction"] < 1e-5
    assert adapted(make, 3, held).measure(rows())["interaction"] > 1e-2


@MODELS
@NORMS
def test_without_its_adapters_it_is_the_frozen_network(make, held) -> None:
    net = adapted(make, 2, held)
    with torch.no_grad():
        plain = make().base_model(**rows().inputs, output_hidden_states=True).hidden_states[2]
        off, on = net.hidden(rows(), set()), net.hidden(rows())
    mask = rows().inputs["attention_mask"].bool()
    torch.testing.assert_close(off[mask], plain[mask])
    assert not off[~mask].any()
    assert (on - off).norm() > 0.05 * off.norm()


@MODELS
@NORMS
@pytest.mark.parametrize("depth", [1, 3])
def test_the_first_step_changes_the_heads_input_by_the_given_share(make, held, depth) -> None:
    net = adapted(make, depth, held, moved=False)
    with torch.no_grad():
        before = net.read(net.hidden(rows(), set()), rows())
    lr = net.matched_rate(rows(), 0.02)
    with torch.no_grad():
        torch.testing.assert_close(net.read(net.hidden(rows()), rows()), before)  # the adapters are restored
    net.fit(rows(), [torch.arange(12)], lr)
    with torch.no_grad():
        moved = float((net.read(net.hidden(rows()), rows()) - before).norm() / before.norm())
    assert moved == pytest.approx(0.02, rel=0.02)


@MODELS
def test_training_lowers_the_loss_and_changes_only_the_adapters(make) -> None:
    net = adapted(make, 2, True, moved=False)
    factors = {id(p) for p in net.factors}
    others = {name: p.detach().clone() for name, p in net.model.named_parameters() if id(p) not in factors}

    def loss():
        with torch.no_grad():
            return float(nn.functional.cross_entropy(net.head(net.hidden(rows()), rows()), rows().labels))

    before = loss()
    net.fit(rows(), batches(12, 6, 20, torch.Generator().manual_seed(0)), net.matched_rate(rows(), 0.05))
    assert loss() < before
    assert all(torch.equal(p, others[name]) for name, p in net.model.named_parameters() if name in others)


def test_a_held_norm_is_affine_and_an_ordinary_one_is_not() -> None:
    g = torch.Generator().manual_seed(0)
    inner = nn.LayerNorm(8)
    with torch.no_grad():
        inner.bias.normal_(generator=g)
        inner.weight.normal_(generator=g)
    x, step = torch.randn(5, 8, generator=g), torch.randn(5, 8, generator=g)
    norm = HeldNorm(inner)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), inner(x))
        norm.recording = False
        torch.testing.assert_close(norm(x), inner(x))
        torch.testing.assert_close(norm(x + 5 * step) - norm(x), 5 * (norm(x + step) - norm(x)), rtol=1e-4, atol=1e-5)
        bent = (inner(x + 5 * step) - inner(x)) - 5 * (inner(x + step) - inner(x))
    assert bent.norm() > 1


class Chain(nn.Module):
    """Orthogonal linear layers only, as in Proposition 1."""

    def __init__(self, layers) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = PreTrainedConfig(num_hidden_layers=layers)
        self.embed = nn.Embedding(64, 16)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16, bias=False)) for _ in range(layers))
        for layer in self.layers:
            nn.init.orthogonal_(layer[0].weight)

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_chain_of_linear_layers_grows_beyond_the_bound(depth) -> None:
    net = AdaptedBlocks(Chain(5), depth, held=False, r=2, eta=2.0, seed=0)
    net.fix_head(rows(), 3, torch.Generator())
    with torch.no_grad():
        for p in net.factors:
            p.normal_()
    found = net.measure(rows())
    assert 0 < found["growth"] <= found["bound"]


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="has 3 blocks, not 4"):
        AdaptedBlocks(bert().base_model, 4, held=False, r=2, eta=2.0, seed=0)
    with pytest.raises(ModelError, match="no LayerNorm"):
        AdaptedBlocks(Chain(2), 2, held=True, r=2, eta=2.0, seed=0)
    with pytest.raises(ModelError, match="no list of None blocks"):
        blocks_of(nn.Module().apply(lambda m: setattr(m, "config", None)))


TINY = {"depths": [2, 4], "r": 2, "train_rows": 32, "test_rows": 8, "max_length": 12, "matched_rows": 16, "steps": 2}


def paper_scale(make, path) -> dict:
    """The settings of proposition1 at paper scale with a tiny model."""
    tokenizer = word_pieces() if make is bert else bytes_of(Qwen2Tokenizer)
    model = save(path / "model", make(len(tokenizer), layers=4), tokenizer)
    transformer = load("proposition1").settings["paper"]["transformer"] | TINY | {"model": model}
    return {
        "width": 16, "rank": 2, "depths": [1, 4], "trained_depths": [2, 4], "pretrain_rows": 128, "pretrain_epochs": 1,
        "rows": 64, "seeds": 2, "steps": 3, "transformer": transformer,
    }  # fmt: skip


def test_proposition1_runs_at_paper_scale_and_two_runs_give_the_same_record(tmp_path) -> None:
    settings = paper_scale(bert, tmp_path)
    for output in ("out", "again"):
        record = run_study(
            load("proposition1"), scale="paper", data_dir=data_dir(), output_dir=tmp_path / output, settings=settings
        )
    kinds = [cell["key"]["kind"] for cell in record["cells"]]
    assert [kinds.count(f"transformer {kind}") for kind in ("normed", "held")] == [4, 4]
    for file in ("record.json", "proposition1.png"):
        first, again = (tmp_path / out / "proposition1" / file for out in ("out", "again"))
        assert first.read_bytes() == again.read_bytes()
    assert str(data_dir()) not in (tmp_path / "out" / "proposition1" / "record.json").read_text()


@pytest.mark.parametrize("kind", ["normed", "held"])
def test_the_transformer_may_be_a_decoder(kind, tmp_path) -> None:
    settings = load("proposition1").settings["paper"] | paper_scale(qwen2, tmp_path)
    key = {"kind": f"transformer {kind}", "depth": 4, "seed": 1}
    found = work(key, settings, StudyData(data_dir()))
    assert work(key, settings, StudyData(data_dir())) == found
    assert found["interaction"] > 0
    assert found["bound"] > found["growth"]
