"""Multiple choice: by the likelihood of each choice after the prompt, or by the choice that a generated answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..data.language import IGNORED, collate_rows
from .batching import Progress, evaluation_mode, longest_first, no_progress
from .generation import Prompt, encode_prompt, generate_answers, left_padded
from .limits import Limits, check_room, check_token_ids, limits_of
from .metrics import Evaluation, proportion
from .next_token import score_next_tokens, takes


def evaluate_choices(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], answers: Sequence[int], *,
    batch_size: int = 8, generate: bool = False, max_new_tokens: int = 32, progress: Progress = no_progress,
    read: Sequence[list[int]] | None = None,
) -> Evaluation:  # fmt: skip
    """Find the choice that the model prefers.

    `accuracy` takes the choice with the largest sum of log-probabilities after the prompt, `accuracy_per_token` the one
    with the largest mean per token; a tie goes to the earlier choice. With `generate` there is also
    `accuracy_generated`, by which results on the commonsense tasks are published: the model answers freely, and its
    choice is the one that its answer names first. An answer that names none is wrong.

    Args:
        prompts: (N,), texts or conversations.
        choices: (N,), each a list of texts. A space goes between prompt and choice if neither has white space there.
        answers: (N,), the index of the right choice.
        batch_size: prompts per forward pass. Each prompt is computed once, with all its choices.
        max_new_tokens: of a generated answer.
        read: (N,), token ids that the model reads in place of each prompt's own, which they end with. The tokens of the
            choices stay the same.

    A choice is cut where the model can take no more tokens, as rows are in training.

    Returns:
        every accuracy with its 95 % interval, and `chance`, the expected accuracy of guessing. The items have row, chosen,
        chosen_per_token, answer, log_probabilities and correct; with `generate` also generated and chosen_generated.

    Raises:
        DataError: a prompt that leaves no room for a choice, or a token that the model has no embedding for.
    """
    sums, continuations = choice_scores(model, tokenizer, prompts, choices, batch_size, progress, read)
    items: list[dict[str, Any]] = []
    for row, (scores, tokens, answer) in enumerate(zip(sums, continuations, answers, strict=True)):
        chosen, per_token = _best(scores), _best([s / len(t) for s, t in zip(scores, tokens, strict=True)])
        item = {"row": row, "chosen": chosen, "chosen_per_token": per_token, "answer": answer}
        items.append(item | {"log_probabilities": scores, "correct": chosen == answer})
    metrics = proportion("accuracy", [item["correct"] for item in items])
    metrics |= proportion("accuracy_per_token", [item["chosen_per_token"] == item["answer"] for item in items])
    if generate:
        generated = generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
        for item, text, options in zip(items, generated, choices, strict=True):
            item |= {"generated": text, "chosen_generated": read_choice(text, options)}
        metrics |= proportion("accuracy_generated", [item["chosen_generated"] == item["answer"] for item in items])
    metrics["chance"] = sum(1 / len(options) for options in choices) / max(len(choices), 1)
    return Evaluation(metrics, items)


def choice_scores(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], batch_size: int,
    progress: Progress = no_progress, read: Sequence[list[int]] | None = None,
) -> tuple[list[list[float]], list[list[list[int]]]]:  # fmt: skip
    """The sum of log-probabilities of every choice after its prompt, and the choice's tokens, by prompt.

    Args:
        prompts, choices, batch_size, read: as in `evaluate_choices`.

    Raises:
        DataError: a prompt that leaves no room for a choice, or a token that the model has no embedding for.
    """
    limits = limits_of(model)
    encoded, continuations = encode_choices(tokenizer, prompts, choices, limits)
    encoded = encoded if read is None else read
    sums: list[list[float]] = [[] for _ in encoded]
    with evaluation_mode(model):
        for rows in longest_first([len(ids) for ids in encoded], batch_size):
            score = _log_probabilities if limits.left_padding and takes(model, "use_cache") else _of_whole_rows
            scored = score(model, [encoded[i] for i in rows], [continuations[i] for i in rows])
            for row, scores in zip(rows, scored, strict=True):
                sums[row] = scores
            progress(len(rows))
    return sums, continuations


def encode_choices(
    tokenizer: Any, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], limits: Limits
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The tokens of every prompt, and of each of its choices, cut where the model can take no more.

    Raises:
        DataError: as in `choice_scores`.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    check_room(encoded, limits, _where)
    rows = zip(prompts, encoded, choices, strict=True)
    continuations = [[_continuation(tokenizer, prompt, ids, choice) for choice in options] for prompt, ids, options in rows]
    if limits.positions is not None:
        room = [limits.positions - len(ids) for ids in encoded]
        continuations = [[ids[:most] for ids in options] for options, most in zip(continuations, room, strict=True)]
    joined = (list(chain(ids, *options)) for ids, options in zip(encoded, continuations, strict=True))
    check_token_ids(joined, limits, tokenizer, _where)
    return encoded, continuations


def _where(row: int) -> str:
    return f"row {row + 1}"


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: scores[i])


def with_gap(prompt: str, choice: str) -> str:
    """A prompt with a choice behind it, and a space between them if neither has white space there."""
    return prompt + ("" if not prompt or prompt[-1].isspace() or choice[:1].isspace() else " ") + choice


def _continuation(tokenizer: Any, prompt: Prompt, prompt_ids: list[int], choice: str) -> list[int]:
    """The tokens of a choice after a prompt, at least one: those of the joint text after the prompt's own tokens."""
    if not isinstance(prompt, str):  # the text of a chat template ends at a token boundary
        ids: list[int] = tokenizer(choice, add_special_tokens=False)["input_ids"]
    else:
        ids = encode_prompt(tokenizer, with_gap(prompt, choice))[len(prompt_ids) :]
        if not ids:  # in the joint text the choice is part of the prompt's last token
            ids = tokenizer(choice, add_special_tokens=False)["input_ids"]
    return ids or [tokenizer.eos_token_id or 0]


def _log_probabilities(model: Any, prompts: list[list[int]], choices: list[list[list[int]]]) -> list[list[float]]:
    """The sum of log-probabilities of every choice, by prompt. The keys and values of a prompt are computed once."""
    ids, mask = left_padded(prompts, 0, model.device)
    position = (mask.cumsum(dim=1) - 1).clamp(min=0)
    last = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    out = model(input_ids=ids, attention_mask=mask, use_cache=True, **_positions(model, position), **last)
    first = out.logits[:, -1].float().log_softmax(dim=-1)  # (prompts, vocabulary): the first token of each choice
    flat = [(row, choice) for row, options in enumerate(choices) for choice in options]
    owner = torch.tensor([row for row, _ in flat], device=model.device)
    sums = first[owner, torch.tensor([choice[0] for _, choice in flat], device=model.device)].double()
    width = max(len(choice) for _, choice in flat)
    if width > 1:
        sums = sums + _later_tokens(model, out.past_key_values, mask, owner, [choice for _, choice in flat], width)
    scores: list[list[float]] = [[] for _ in prompts]
    for (row, _), value in zip(flat, sums.tolist(), strict=True):
        scores[row].append(value)
    return scores


def _of_whole_rows(model: Any, prompts: list[list[int]], choices: list[list[list[int]]]) -> list[list[float]]:
    """The same for any model: a prompt is computed with each of its choices, padded on the right."""
    flat = [(row, prompt, choice) for row, prompt in enumerate(prompts) for choice in choices[row]]
    examples = [{"input_ids": p + choice, "labels": [IGNORED] * len(p) + choice} for _, p, choice in flat]
    batch = {name: tensor.to(model.device) for name, tensor in collate_rows(examples, 0).items()}
    labels = batch.pop("labels")
    found = score_next_tokens(model, batch, labels)
    sums = torch.zeros(len(flat), dtype=torch.float64, device=found.loss.device)
    sums = sums.index_add(0, found.mask.nonzero()[:, 0].to(found.loss.device), -found.loss.double())
    scores: list[list[float]] = [[] for _ in prompts]
    for (row, _, _), value in zip(flat, sums.tolist(), strict=True):
        scores[row].append(value)
    return scores


def _later_tokens(model: Any, cache: Any, mask: Tensor, owner: Tensor, choices: list[list[int]], width: int) -> Tensor:
    """The summed log-probabilities of the second and later tokens of every choice: (choices,), float64."""
    cache.batch_select_indices(owner)
    inputs = torch.tensor([c[:-1] + [0] * (width - len(c)) for c in choices], device=mask.device)  # all but the last token
    targets = torch.tensor([c[1:] + [-1] * (width - len(c)) for c in choices], device=mask.device)
    prompt_mask, choice_mask = mask[owner], (targets != -1).long()
    start = prompt_mask.sum(dim=1, keepdim=True)
    logits = model(
        input_ids=inputs,
        attention_mask=torch.cat([prompt_mask, choice_mask], dim=1),
        past_key_values=cache,
        use_cache=True,
        **_positions(model, start + torch.arange(width - 1, device=mask.device)),
    ).logits
    picked = logits.float().log_softmax(dim=-1).gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (picked.double() * choice_mask).sum(dim=1)


def _positions(model: Any, position: Tensor) -> dict[str, Tensor]:
    """Positions without the padding, for a model that takes them. Other models derive them from the mask."""
    return {"position_ids": position} if takes(model, "position_ids") else {}


def read_choice(text: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that a text names first; None if it names none.

    The words that all choices begin with ("the correct answer is") are ignored. Case is folded. A choice must occur as
    whole words; of two that start at the same position the longer one counts.

    >>> read_choice("The correct answer is Answer2.", ["the correct answer is answer1", "the correct answer is answer2"])
    1
    >>> read_choice("I think false", ["true", "false"])
    1
    >>> read_choice("maybe", ["true", "false"]) is None
    True
    """
    words = [choice.casefold().split() for choice in choices]
    columns = list(zip(*words, strict=False))
    shared = next((i for i, column in enumerate(columns) if len(set(column)) > 1), len(columns))
    labels = [" ".join(choice[shared:]) for choice in words]
    answer = " ".join(text.casefold().split())
    found: list[tuple[int, int, int]] = []
    for index, label in enumerate(labels):
        match = re.search(rf"(?<!\w){re.escape(label)}(?!\w)", answer) if label else None
        if match:
            found.append((match.start(), -len(label), index))
    return min(found)[2] if found else None
