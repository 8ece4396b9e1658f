"""transformers' `TrainingArguments` of a run."""

from __future__ import annotations

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from ..errors import ConfigError, did_you_mean
from .config import DEFAULT_EPOCHS, RunConfig
from .processes import on_cpu


def check_optimizer(config: RunConfig) -> None:
    """Check the optimizer's name.

    Raises:
        ConfigError: transformers has no optimizer of that name.
    """
    known = [str(o.value) for o in OptimizerNames]
    if config.optimizer not in known:
        raise ConfigError(f"unknown optimizer {config.optimizer!r}", remedy=did_you_mean(config.optimizer, known))


def training_arguments(config: RunConfig, directory: str) -> TrainingArguments:
    """The arguments of transformers' Trainer.

    Args:
        directory: for whatever the Trainer wants to write (the files of its reporters).

    Raises:
        ConfigError: a language model, and several GPUs in one process.
    """
    arguments = TrainingArguments(
        output_dir=directory, num_train_epochs=config.epochs or DEFAULT_EPOCHS, max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size, gradient_accumulation_steps=config.gradient_accumulation,
        optim=config.optimizer, learning_rate=config.learning_rate, lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=config.gradient_checkpointing, seed=config.data_seed, data_seed=config.data_seed,
        logging_steps=1, logging_nan_inf_filter=False, report_to=list(config.report_to) or "none", disable_tqdm=True,
        include_num_input_tokens_seen="no" if config.task == "image-classification" else "non_padding",
        save_strategy="no",  # callbacks.py decides when, state.py how
        label_names=["labels"], remove_unused_columns=False, use_cpu=on_cpu(),
        bf16=False,  # `dtype` decides what the frozen weights are stored and computed in
    )  # fmt: skip
    if config.is_language and arguments.n_gpu > 1:
        raise ConfigError(
            f"{arguments.n_gpu} GPUs in one process, which torch's DataParallel would need",
            remedy=f"start it with torchrun --nproc-per-node {arguments.n_gpu}, or set CUDA_VISIBLE_DEVICES to one GPU",
        )
    return arguments
