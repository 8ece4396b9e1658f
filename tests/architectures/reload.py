"""Loads adapters and models as their users do, without alloralib: python reload.py JOBS.json SEED OUT.safetensors.

The seed is for whatever the loading draws at random. It decides nothing if everything that was trained was saved.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    logging,
)
from transformers.image_processing_base import ImageProcessingMixin

AUTO: dict[str, Any] = {
    "causal-lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "image-classification": AutoModelForImageClassification,
}


def logits_of(model: Any, processor: Any, inputs: list[str]) -> torch.Tensor:
    """(rows, classes) of a classifier, (tokens, vocabulary) of a language model."""
    if isinstance(processor, ImageProcessingMixin):
        batch = processor(images=[Image.open(path) for path in inputs], return_tensors="pt")
    else:
        batch = processor(inputs, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    return (logits[batch["attention_mask"].bool()] if logits.dim() == 3 else logits).clone()


def load_base(job: dict[str, Any], processor: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    auto, settings = AUTO[job["task"]], {}
    if job["classes"] is not None:
        settings = {"num_labels": job["classes"], "ignore_mismatched_sizes": True}
    model = auto.from_pretrained(job["model"], **settings)
    if job["task"] == "classification":  # the padding token by which a decoder finds the end of a row
        model.config.get_text_config().pad_token_id = processor.pad_token_id
    return model


def reload(job: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    load_processor = AutoImageProcessor if job["task"] == "image-classification" else AutoTokenizer
    found: dict[str, torch.Tensor] = {}
    for what in ("run", "exported"):
        processor = load_processor.from_pretrained(job[what])
        model = PeftModel.from_pretrained(load_base(job, processor, seed), job[what])
        found[what] = logits_of(model, processor, job["inputs"])
    torch.manual_seed(seed)
    merged, notes = AUTO[job["task"]].from_pretrained(job["merged"], output_loading_info=True)
    assert not any(notes[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), notes
    found["merged"] = logits_of(merged, load_processor.from_pretrained(job["merged"]), job["inputs"])
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
