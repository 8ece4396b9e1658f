"""Data sets that are known by name: the paper's tasks and those of its lab's harness. Imports nothing heavy.

This file says what is known of a set; `registered.py` reads its files. The rows of every set have the default column names
of their task (text, label, prompt, ...), whatever the names on the hub are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .forms import Columns, Kind

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Hub:
    """The place of a set on the Hugging Face hub.

    Attributes:
        id: of the data set.
        splits: part -> split. If the hub's test split has no labels, its validation split is the test part, as is usual.
        config: the configuration's name, if there are several.
        revision: a branch; `refs/convert/parquet` if the main branch holds a loading script, which `datasets` no longer runs.
    """

    id: str
    splits: Mapping[Part, str]
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class RegisteredSet:
    """A data set that a run can name.

    Attributes:
        name: the value of `--data`.
        kind: the task.
        columns: by their default names.
        metric: its score: accuracy, exact_match or loss.
        hub: where it is on the hub.
        about: one line.
        license: as its publisher states it.
        labels: the classes in the order of their indices; None if they are taken from the training rows.
        aliases: column -> its names on the hub or in the publisher's files.
        folders: directories below `--data-dir` in which its files are looked for.
        files: part -> further names of its file without suffix, besides the part's own name.
    """

    name: str
    kind: Kind
    columns: Columns
    metric: Literal["accuracy", "exact_match", "loss"]
    hub: Hub
    about: str
    license: str
    labels: tuple[str, ...] | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    files: Mapping[Part, tuple[str, ...]] = field(default_factory=dict)


_TRAIN: Mapping[Part, str] = {"train": "train"}
_TRAIN_TEST: Mapping[Part, str] = {"train": "train", "test": "test"}
_ALL: Mapping[Part, str] = {"train": "train", "validation": "validation", "test": "test"}
_VALIDATION_AS_TEST: Mapping[Part, str] = {"train": "train", "test": "validation"}
_PARQUET = "refs/convert/parquet"
_UNSTATED = "none stated"
_NEGATIVE_POSITIVE = ("negative", "positive")
_CC_BY_SA = "CC BY-SA 4.0"


def _texts(
    name: str, hub: Hub, about: str, license: str, labels: tuple[str, ...] | None, *, pair: bool = False,
    files: Mapping[Part, tuple[str, ...]] | None = None, **aliases: str,
) -> RegisteredSet:  # fmt: skip
    """A set for classification; `aliases` gives columns their other name."""
    columns = Columns.of("classification", {"text_pair": "text_pair"} if pair else {})
    others = {part: (other,) for part, other in aliases.items()}
    return RegisteredSet(name, "classification", columns, "accuracy", hub, about, license, labels, others, (name,), files or {})


def _choices(name: str, hub: Hub, about: str, license: str, folder: str | None = None) -> RegisteredSet:
    """A set for multiple choice, in LLM-Adapters' directories too."""
    folder = folder or name
    folders = tuple(dict.fromkeys((name, f"commonsense/{folder}", folder)))
    columns = Columns.of("multiple-choice", {})
    return RegisteredSet(name, "multiple-choice", columns, "accuracy", hub, about, license, folders=folders)


_PROFESSIONS = (
    *("accountant", "architect", "attorney", "chiropractor", "comedian", "composer", "dentist", "dietitian", "dj"),
    *("filmmaker", "interior_designer", "journalist", "model", "nurse", "painter", "paralegal", "pastor"),
    *("personal_trainer", "photographer", "physician", "poet", "professor", "psychologist", "rapper"),
    *("software_engineer", "surgeon", "teacher", "yoga_teacher"),
)
_EMOTIONS = ("sadness", "joy", "love", "anger", "fear", "surprise")
_STARS = ("1 star", "2 star", "3 stars", "4 stars", "5 stars")
_ENTAILMENT = ("entailment", "neutral", "contradiction")
_TREC_CLASSES = ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")

# One entry in three lines: name and place, what it is, license and classes.
# fmt: off
_SETS = (
    # the paper's classification tasks
    _texts("bias_in_bios", Hub("LabHC/bias_in_bios", {"train": "train", "validation": "dev", "test": "test"}),
           "short biographies -> one of 28 professions",
           "MIT", _PROFESSIONS, text="hard_text", label="profession", files={"validation": ("dev",)}),
    _texts("emotion", Hub("dair-ai/emotion", _ALL, config="split"),
           "English tweets -> one of 6 emotions",
           "research and education only", _EMOTIONS),
    _texts("rotten_tomatoes", Hub("cornell-movie-review-data/rotten_tomatoes", _ALL),
           "sentences of film reviews -> positive or negative",
           _UNSTATED, ("neg", "pos")),
    _texts("yelp_review_full", Hub("Yelp/yelp_review_full", _TRAIN_TEST),
           "reviews -> 1 to 5 stars",
           "Yelp's terms of use", _STARS),
    # the paper's eight commonsense tasks, with the prompt of LLM-Adapters (Hu et al. 2023)
    _choices("boolq", Hub("google/boolq", _VALIDATION_AS_TEST),
             "yes-no questions, without the passage", "CC BY-SA 3.0"),
    _choices("piqa", Hub("ybisk/piqa", _VALIDATION_AS_TEST, revision=_PARQUET),
             "everyday physics, 2 solutions", "AFL 3.0 (upstream)"),
    _choices("social_i_qa", Hub("allenai/social_i_qa", _VALIDATION_AS_TEST, revision=_PARQUET),
             "social situations, 3 answers", _UNSTATED),
    _choices("hellaswag", Hub("Rowan/hellaswag", _VALIDATION_AS_TEST),
             "what happens next, 4 endings", "MIT"),
    _choices("winogrande", Hub("allenai/winogrande", _VALIDATION_AS_TEST, config="winogrande_xl"),
             "whom a blank stands for, 2 options", "CC BY"),
    _choices("arc_easy", Hub("allenai/ai2_arc", _ALL, config="ARC-Easy"),
             "school science, 3 to 5 answers", _CC_BY_SA, "ARC-Easy"),
    _choices("arc_challenge", Hub("allenai/ai2_arc", _ALL, config="ARC-Challenge"),
             "harder school science, 3 to 5 answers", _CC_BY_SA, "ARC-Challenge"),
    _choices("openbookqa", Hub("allenai/openbookqa", _ALL, config="main"),
             "elementary science, 4 answers", _UNSTATED),
    # the lab's harness
    _texts("sst2", Hub("stanfordnlp/sst2", _VALIDATION_AS_TEST),
           "sentences of film reviews -> positive or negative",
           _UNSTATED, _NEGATIVE_POSITIVE, text="sentence"),
    _texts("imdb", Hub("stanfordnlp/imdb", _TRAIN_TEST),
           "film reviews -> positive or negative",
           _UNSTATED, ("neg", "pos")),
    _texts("toxigen", Hub("toxigen/toxigen-data", _TRAIN_TEST, config="annotated"),
           "statements about groups -> toxic or not (human + machine rating > 5.5)",
           _UNSTATED, ("benign", "toxic")),
    _texts("snli", Hub("stanfordnlp/snli", _ALL),
           "premise and hypothesis -> entailment, neutral or contradiction",
           _CC_BY_SA, _ENTAILMENT, pair=True, text="premise", text_pair="hypothesis"),
    _texts("medical_questions_pairs", Hub("curaihealth/medical_questions_pairs", _TRAIN),
           "two medical questions -> the same or not",
           _UNSTATED, ("different", "same"), pair=True, text="question_1", text_pair="question_2"),
    _texts("amazon_polarity", Hub("fancyzhx/amazon_polarity", _TRAIN_TEST),
           "product reviews -> positive or negative",
           "Apache-2.0 (hub)", _NEGATIVE_POSITIVE, text="content"),
    _texts("banking77", Hub("PolyAI/banking77", _TRAIN_TEST, revision=_PARQUET),
           "customers' questions -> one of 77 intents",
           "CC BY 4.0", None, label="category"),
    _texts("sms_spam", Hub("ucirvine/sms_spam", _TRAIN),
           "text messages -> ham or spam",
           "CC BY 4.0", ("ham", "spam"), text="sms"),
    _texts("trec", Hub("CogComp/trec", _TRAIN_TEST, revision=_PARQUET),
           "questions -> one of 6 kinds of answer",
           _UNSTATED, _TREC_CLASSES, label="coarse_label"),
    # ours: generation with short answers
    RegisteredSet("e2e_nlg", "causal-lm", Columns.of("causal-lm", {"prompt": "prompt", "completion": "completion"}), "loss",
                  Hub("tuetschek/e2e_nlg", _ALL, revision=_PARQUET),
                  "facts about a restaurant -> a sentence; several references per meaning, a row each",
                  _CC_BY_SA, folders=("e2e_nlg",),
                  files={"train": ("trainset", "devset"), "validation": ("devset",), "test": ("testset_w_refs",)}),
)
# fmt: on

REGISTRY: dict[str, RegisteredSet] = {known.name: known for known in _SETS}
"""Every registered set by its name."""
