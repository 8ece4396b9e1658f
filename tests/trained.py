"""Finished runs of tiny models, one per kind of task, each trained once for all tests that only read them."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, ViTConfig, ViTForImageClassification, ViTImageProcessor

from alloralib.cli.main import main

CHAT_TEMPLATE = (  # without generation markers
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
ADJECTIVES = ["good", "great", "fine", "bad", "awful", "poor"]  # the first three are positive
NOUNS = ["film", "story", "actor", "plot", "music", "scene"]


def sentences(n: int) -> list[tuple[str, bool]]:
    """Different texts, and whether their last word, an adjective, is positive."""
    rng = random.Random(1)
    texts: dict[str, bool] = {}
    while len(texts) < n:
        adjective = rng.choice(ADJECTIVES)
        texts[" ".join([*rng.sample(NOUNS, 3), adjective])] = adjective in ADJECTIVES[:3]
    return list(texts.items())


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def command(directory: Path, **flags: Any) -> list[str]:
    """A short `allora train` into directory/run."""
    flags = {"output_dir": directory / "run", "r": 2, "max_steps": 30, "batch_size": 8, "learning_rate": 0.02} | flags
    return ["train", *(word for k, v in flags.items() for word in ("--" + k.replace("_", "-"), str(v)))]


def make_chat_model(llama: str, directory: Path) -> str:
    """The tiny Llama with a chat template."""
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return str(directory)


def make_image_model(directory: Path) -> str:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).save_pretrained(directory)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(directory)
    return str(directory)


def make_images(directory: Path) -> str:
    """48 images of 8 x 8 pixels: a folder of dark ones and one of light ones."""
    rng = np.random.default_rng(0)
    for i in range(48):
        folder = directory / ("dark" if i % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (8, 8, 3)) + (0 if i % 2 else 150)
        Image.fromarray(pixels.astype("uint8")).save(folder / f"{i}.png")
    return str(directory)


def _texts(root: Path) -> dict[str, Any]:
    rows = [{"text": text, "label": "pos" if good else "neg"} for text, good in sentences(60)]
    return {"task": "classification", "data": jsonl(root / "rows.jsonl", rows), "test_share": 0.3, "learning_rate": 0.03}


def _pairs(root: Path) -> dict[str, Any]:
    rows = [
        {"a": text, "b": other, "same": ["no", "yes"][good == other_good]}
        for (text, good), (other, other_good) in zip(sentences(60), sentences(60)[::-1], strict=True)
    ]
    columns = {"text_column": "a", "text_pair_column": "b", "label_column": "same"}
    return {"task": "classification", "data": jsonl(root / "pairs.jsonl", rows), **columns}


def _images(root: Path) -> dict[str, Any]:
    return {"task": "image-classification", "data": make_images(root / "images"), "test_share": 0.25}


def _completions(root: Path) -> dict[str, Any]:
    rows = [{"prompt": f"{text} is", "completion": " good" if good else " bad"} for text, good in sentences(50)]
    columns = {"prompt_column": "prompt", "completion_column": "completion"}
    return {"task": "causal-lm", "data": jsonl(root / "rows.jsonl", rows), "test_share": 0.3, **columns}


def _plain(root: Path) -> dict[str, Any]:
    data = jsonl(root / "rows.jsonl", [{"text": text} for text, _ in sentences(60)])
    return {"task": "causal-lm", "data": data, "text_column": "text", "test_share": 0.3}


def _turns() -> list[list[tuple[str, str]]]:
    return [
        [("user", text), ("assistant", "good" if good else "bad"), ("user", "and the music"), ("assistant", "fine")]
        for text, good in sentences(60)
    ]


def _chat(root: Path) -> dict[str, Any]:
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in _turns()]
    return {"task": "chat", "data": jsonl(root / "chat.jsonl", rows)}


def _sharegpt(root: Path) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    rows = [{"conversations": [{"from": names[role], "value": text} for role, text in turns]} for turns in _turns()]
    return {"task": "chat", "data": jsonl(root / "chat.jsonl", rows), "messages_column": "conversations"}


def _choices(root: Path) -> dict[str, Any]:
    rows = [
        {"prompt": f"{text} is ", "choices": ["bad", "good"], "answer": "good" if good else "bad"}
        for text, good in sentences(80)
    ]
    flags = {"test_share": 0.3, "validation_share": 0.2, "evaluate_every": 10}
    return {"task": "multiple-choice", "data": jsonl(root / "choices.jsonl", rows), **flags}


RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "classification": _texts,
    "pairs": _pairs,
    "image-classification": _images,
    "causal-lm": _completions,
    "plain text": _plain,
    "chat": _chat,
    "sharegpt": _sharegpt,
    "multiple-choice": _choices,
}


def train_once(name: str, root: Path, llama: str) -> Path:
    """The directory of the run of that name below `root`. The first process that asks for it trains it."""
    root = root / name.replace(" ", "-")
    with FileLock(f"{root}.lock"):
        if not (root / "run" / "record.json").is_file():
            root.mkdir(parents=True, exist_ok=True)
            flags = RUNS[name](root)
            if flags["task"] == "chat":
                flags["model"] = make_chat_model(llama, root / "model")
            else:
                flags["model"] = make_image_model(root / "model") if "image" in flags["task"] else llama
            with warnings.catch_warnings():  # the command changes the filters of its process
                assert main(command(root, **flags)) == 0
    return root / "run"
