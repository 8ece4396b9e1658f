"""A plain script: trains a LoRA adapter for a small language model, with transformers' Trainer and PEFT at their defaults.

`job.py` compares `allora train` with it. It uses nothing of alloralib and is meant to be what a careful user writes: the loss
is taken on the answer only, the answer ends with the end-of-text token, padding is masked and has no loss, and the adapter is
on every linear layer with r = alpha = 16. Everything else is at the libraries' defaults: AdamW, a learning rate that decays
linearly, gradients clipped at 1, no dropout, float32 as the model is stored.

Rows are padded when they are tokenized, all at once: `tokenizer(texts, padding=True)`, as in most tutorials. With
`--dynamic-padding` a collator pads each batch instead.

    python plain_job.py --model DIR --train train.jsonl --output-dir adapter [--dynamic-padding]

Rows are JSONL with `prompt` and `completion`. The script writes `job.json` beside the adapter: what was done and how long each
part took, without imports.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

IGNORED = -100
MAX_LENGTH = 512


def tokenized(rows: Dataset, tokenizer: AutoTokenizer, *, padding: bool) -> Dataset:
    """Token ids, mask and labels of every row. Prompt and padding get the ignored label."""
    prompts = list(rows["prompt"])
    texts = [prompt + answer + tokenizer.eos_token for prompt, answer in zip(prompts, rows["completion"], strict=True)]
    encoded = tokenizer(texts, padding=padding, truncation=True, max_length=MAX_LENGTH)
    labels = []
    for ids, mask, prompt_ids in zip(
        encoded["input_ids"], encoded["attention_mask"], tokenizer(prompts)["input_ids"], strict=True
    ):
        labels.append(
            [
                token if attended and place >= len(prompt_ids) else IGNORED
                for place, (token, attended) in enumerate(zip(ids, mask, strict=True))
            ]
        )
    return Dataset.from_dict({**encoded, "labels": labels})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dynamic-padding", action="store_true", help="pad each batch to its longest row")
    arguments = parser.parse_args()

    clock = {}
    start = time.perf_counter()
    set_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.print_trainable_parameters()
    clock["load"] = time.perf_counter() - start

    start = time.perf_counter()
    rows = load_dataset("json", data_files=arguments.train, split="train")
    dataset = tokenized(rows, tokenizer, padding=not arguments.dynamic_padding)
    clock["tokenize"] = time.perf_counter() - start

    start = time.perf_counter()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=arguments.output_dir,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            num_train_epochs=arguments.epochs,
            seed=arguments.seed,
            include_num_input_tokens_seen="all",  # counts tokens with padding, for job.json
        ),
        train_dataset=dataset,
        data_collator=DataCollatorForSeq2Seq(tokenizer) if arguments.dynamic_padding else default_data_collator,
    )
    result = trainer.train()
    clock["train"] = time.perf_counter() - start

    start = time.perf_counter()
    model.save_pretrained(arguments.output_dir)
    tokenizer.save_pretrained(arguments.output_dir)
    clock["save"] = time.perf_counter() - start
    done = {
        "updates": trainer.state.global_step,
        "loss": result.training_loss,
        "tokens": sum(map(sum, dataset["attention_mask"])) * round(arguments.epochs),
        "padded_tokens": int(trainer.state.num_input_tokens_seen),
        "trained_parameters": model.get_nb_trainable_parameters()[0],
        "seconds": {phase: round(seconds, 3) for phase, seconds in clock.items()},
    }
    (Path(arguments.output_dir) / "job.json").write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
