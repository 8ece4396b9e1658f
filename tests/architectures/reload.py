"""Loads adapters and models as their users do, without alloralib: python reload.py JOBS.json SEED OUT.safetensors.

The seed is for whatever the loading draws at random. It decides nothing if everything that was trained was saved.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, logging


def logits_of(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """(rows, classes) of a classifier, (tokens, vocabulary) of a language model."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    return (logits[batch["attention_mask"].bool()] if logits.dim() == 3 else logits).clone()


def base_of(job: dict[str, Any], tokenizer: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    if job["classes"] is None:
        return AutoModelForCausalLM.from_pretrained(job["model"])
    # the number of classes, and the padding token by which a decoder finds the end of a row
    model = AutoModelForSequenceClassification.from_pretrained(
        job["model"], num_labels=job["classes"], ignore_mismatched_sizes=True
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def reload(job: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for what in ("run", "exported"):
        tokenizer = AutoTokenizer.from_pretrained(job[what])
        model = PeftModel.from_pretrained(base_of(job, tokenizer, seed), job[what])
        found[what] = logits_of(model, tokenizer, job["texts"])
    torch.manual_seed(seed)
    auto: Any = AutoModelForCausalLM if job["classes"] is None else AutoModelForSequenceClassification
    merged, notes = auto.from_pretrained(job["merged"], output_loading_info=True)
    assert not any(notes[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), notes
    found["merged"] = logits_of(merged, AutoTokenizer.from_pretrained(job["merged"]), job["texts"])
    return found


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    jobs, seed, output = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), sys.argv[3]
    tensors, failed = {}, {}
    for name, job in jobs.items():
        try:
            tensors |= {f"{name}/{what}": logits for what, logits in reload(job, seed).items()}
        except Exception as error:  # the others are still to be loaded
            failed[name] = f"{type(error).__name__}: {error}"
    assert "alloralib" not in sys.modules
    save_file(tensors, output, metadata=failed)
