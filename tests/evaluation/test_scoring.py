"""Scores of batches against the scores of the same model on one example at a time."""

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorWithPadding, ViTConfig, ViTForImageClassification
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from alloralib.evaluation.scoring import evaluate_classifier, evaluate_loss

from ..adapters.models import bert, gpt2, llama, randomise


def ragged(rows: int = 11, longest: int = 9) -> list[list[int]]:
    g = torch.Generator().manual_seed(3)
    return [torch.randint(3, 20, (1 + (5 * i) % longest,), generator=g).tolist() for i in range(rows)]


@pytest.fixture
def tokenizer(tiny_llama):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_classifier(tokenizer, batch_size: int) -> None:
    model, ids = bert(), ragged()
    labels = [i % 3 for i in range(len(ids))]
    examples = datasets.Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(x) for x in ids],
            "labels": labels,
            "row": [10 * i for i in range(len(ids))],
            "text": ["not for the model"] * len(ids),
        }
    )
    done = []
    found = evaluate_classifier(model, examples, DataCollatorWithPadding(tokenizer), ["x", "y", "z"], batch_size, done.append)
    assert sum(done) == len(ids)
    losses = []
    for item, x, label in zip(found.items, ids, labels, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([x])).logits[0]
        p = logits.softmax(-1)
        losses.append(-p.log()[label].item())
        assert item["predicted"] == "xyz"[int(p.argmax())]
        assert item["probability"] == pytest.approx(p.max().item(), abs=1e-5)
        assert (item["truth"], item["correct"]) == ("xyz"[label], int(p.argmax()) == label)
    assert [item["row"] for item in found.items] == examples["row"]
    assert found.metrics["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert found.metrics["accuracy"] == sum(item["correct"] for item in found.items) / len(ids)


def test_image_classifier() -> None:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
                       patch_size=4, num_labels=2)  # fmt: skip
    model = ViTForImageClassification(config).train()
    pixels = torch.randn(5, 3, 8, 8)
    examples = datasets.Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": [0, 1, 0, 1, 1], "row": range(5)})

    def collate(rows):
        return {
            "pixel_values": torch.tensor([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    found = evaluate_classifier(model, examples, collate, ["no", "yes"], 2)
    assert model.training  # as it was before
    with torch.no_grad():
        single = model.eval()(pixel_values=pixels).logits.argmax(-1)
    assert [item["predicted"] for item in found.items] == [["no", "yes"][i] for i in single]


class NoSelection(torch.nn.Module):
    """A model without `logits_to_keep`: it computes all logits."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model, self.device = model, model.device

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


@pytest.mark.parametrize("make", [llama, gpt2, lambda: NoSelection(llama()), "adapted"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_loss_per_token(make, batch_size: int) -> None:
    if make == "adapted":
        model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"])).eval()
        randomise(model)
    else:
        model = make().eval()
    ids = ragged()
    labels = [[-100] * (len(x) // 2) + x[len(x) // 2 :] for x in ids]
    examples = datasets.Dataset.from_dict({"input_ids": ids, "labels": labels, "row": list(range(7, 7 + len(ids)))})
    found = evaluate_loss(model, examples, DataCollatorForLanguageModeling(pad_token_id=0), batch_size)
    total = count = 0
    for item, x, y in zip(found.items, ids, labels, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([x]), attention_mask=torch.ones(1, len(x), dtype=torch.long)).logits[0]
        logp = logits.log_softmax(-1)
        losses = [-logp[t, y[t + 1]].item() for t in range(len(x) - 1) if y[t + 1] != -100]
        total, count = total + sum(losses), count + len(losses)
        assert item["tokens"] == len(losses)
        assert item["loss"] == (pytest.approx(sum(losses) / len(losses), abs=1e-5) if losses else None)
    assert found.metrics["tokens"] == count
    assert found.metrics["loss"] == pytest.approx(total / count, abs=1e-6)
    assert found.metrics["loss_low"] < found.metrics["loss"] < found.metrics["loss_high"]


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = llama().train()
    with pytest.raises(ZeroDivisionError):
        evaluate_loss(model, datasets.Dataset.from_dict({"input_ids": [[1]]}), lambda rows: 1 / 0, 1)
    assert model.training
