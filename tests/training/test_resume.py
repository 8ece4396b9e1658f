"""A run that is stopped anywhere goes on and ends as if it had never been stopped, bit for bit."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from alloralib.records import RunRecord

from .processes import Strike, run

TRAINER = "transformers"
CHECKPOINTS = "alloralib.training.checkpoints"
RUN = "alloralib.training.run"
DIRECTORY = "alloralib.training.directory"

# 15 steps in 3 epochs of 5 (two forward passes each), a checkpoint every 2 steps and a look at the validation rows every 3
KILLED = [
    Strike(RUN, "prepare"),
    Strike(RUN, "preflight", when="after"),
    Strike(TRAINER, "Trainer.training_step", 1),
    Strike(TRAINER, "Trainer.training_step", 5),
    Strike(TRAINER, "Trainer.training_step", 8, "after"),
    Strike(TRAINER, "Trainer.training_step", 9),
    Strike(TRAINER, "Trainer.training_step", 14),
    Strike(TRAINER, "Trainer.training_step", 24, "after"),
    Strike(CHECKPOINTS, "save_file", 1),
    Strike(CHECKPOINTS, "save_file", 1, "torn"),
    Strike(CHECKPOINTS, "save_file", 4, "torn"),
    Strike(CHECKPOINTS, "save_file", 8, "after"),
    Strike(CHECKPOINTS, "sync", 1),
    Strike(CHECKPOINTS, "sync", 12),
    Strike(CHECKPOINTS, "Path.rename", 1),
    Strike(CHECKPOINTS, "Path.rename", 3, "after"),
    Strike(CHECKPOINTS, "shutil.rmtree", 5),
    Strike("alloralib.training.prepare", "Run.validate", 2),
    Strike("alloralib.training.prepare", "Run.test", 2),
    Strike("alloralib.training.results", "RunRecord.write"),
    Strike("alloralib.training.results", "RunRecord.write", when="after"),
    Strike(DIRECTORY, "Path.rename", 9),  # after those of eight checkpoints
    Strike(DIRECTORY, "RunDirectory.publish", when="after"),
]


@pytest.fixture(scope="module")
def words(tiny_llama, tmp_path_factory) -> list[str]:
    """A run in which everything that has a state has one: dropout, momentum, a head, epochs, validation, a schedule."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    nouns = ["film", "story", "actor", "plot", "scene", "ending", "music", "the", "a", "is"]
    rows = [
        {"text": " ".join([*(nouns[(i * k) % 10] for k in range(1, 3 + i % 5)), "good" if i % 2 else "bad", nouns[i % 7]]),
         "label": i % 2}
        for i in range(60)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "train", "--task", "classification", "--model", tiny_llama, "--data", str(path), "--method", "allora-d",
        "--r", "2", "--epochs", "3", "--batch-size", "4", "--gradient-accumulation", "2", "--learning-rate", "0.01",
        "--test-share", "0.2", "--validation-share", "0.2", "--evaluate-every", "3", "--checkpoint-every", "2",
        "--rule-every", "5", "--target-modules", "q_proj,v_proj,down_proj",
    ]  # fmt: skip


def at(words: list[str], directory: Path) -> list[str]:
    return [*words, "--output-dir", str(directory)]


@pytest.fixture(scope="module")
def uninterrupted(words, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert run(at(words, directory)) == 0
    record = RunRecord.read(directory / "record.json")
    assert [entry["step"] for entry in record.history] == list(range(1, 16))
    return directory


def assert_same(directory: Path, other: Path) -> None:
    assert (directory / "adapter_model.safetensors").read_bytes() == (other / "adapter_model.safetensors").read_bytes()
    assert (directory / "predictions.jsonl").read_bytes() == (other / "predictions.jsonl").read_bytes()
    records = [RunRecord.read(d / "record.json") for d in (directory, other)]
    for name in ("metrics", "history", "validation", "rule", "data", "adapter"):
        assert getattr(records[0], name) == getattr(records[1], name), name
    assert {p.name for p in directory.iterdir()} == {p.name for p in other.iterdir()}


@pytest.mark.parametrize("strike", KILLED, ids=str)
def test_killed_and_resumed_ends_bit_identical(words, uninterrupted, tmp_path, strike: Strike) -> None:
    directory = tmp_path / "run"
    assert run(at(words, directory), strike) == -signal.SIGKILL
    if strike.name != "RunDirectory.publish":
        assert not directory.exists(), "nothing stands under the final name before the run is complete"
        assert run(["train", "--resume", "--output-dir", str(directory)], log=tmp_path / "log") == 0, (
            tmp_path / "log"
        ).read_text()
    assert_same(directory, uninterrupted)
    assert {p.name for p in tmp_path.iterdir()} <= {"run", "log"}


@pytest.mark.parametrize("forgotten", ["restore_random", "restore_optimizer", "restore_weights", "BucketBatches.set_epoch"])
def test_the_test_above_can_fail(words, uninterrupted, tmp_path, forgotten: str) -> None:
    """A resume that forgets one thing ends with another adapter."""
    directory = tmp_path / "run"
    assert run(at(words, directory), Strike(TRAINER, "Trainer.training_step", 14)) == -signal.SIGKILL
    broken = Strike("alloralib.training.trainer", forgotten, when="instead")
    assert run(["train", "--resume", "--output-dir", str(directory)], broken) == 0
    name = "adapter_model.safetensors"
    assert (directory / name).read_bytes() != (uninterrupted / name).read_bytes()


def test_killed_while_it_replaces_a_run(words, uninterrupted, tmp_path) -> None:
    """The old run is not lost before the new one stands in its place."""
    directory = tmp_path / "run"
    shutil.copytree(uninterrupted, directory)
    (directory / "mine").write_text("of the old run")
    assert run([*at(words, directory), "--overwrite"], Strike(DIRECTORY, "Path.rename", 10)) == -signal.SIGKILL
    assert (tmp_path / "run.replaced" / "mine").exists()
    assert run(["train", "--resume", "--output-dir", str(directory)]) == 0
    assert_same(directory, uninterrupted)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(words, uninterrupted, tmp_path, number: int) -> None:
    directory, log = tmp_path / "run", tmp_path / "log"
    strike = Strike(TRAINER, "Trainer.training_step", 9, signal=number)
    assert run(at(words, directory), strike, log) == 128 + number
    assert "a checkpoint is in" in log.read_text()
    assert "--resume" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert (tmp_path / "run.unfinished" / "checkpoints" / "step-00000005").is_dir()
    assert run(["train", "--resume", "--output-dir", str(directory)]) == 0
    assert_same(directory, uninterrupted)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "no manifest", "bad manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(words, uninterrupted, tmp_path, damage: str) -> None:
    directory, log = tmp_path / "run", tmp_path / "log"
    assert run(at(words, directory), Strike(TRAINER, "Trainer.training_step", 13)) == -signal.SIGKILL
    newest = tmp_path / "run.unfinished" / "checkpoints" / "step-00000006"
    file = newest / ("manifest.json" if "manifest" in damage else "optimizer.safetensors")
    content = file.read_bytes()
    if damage in ("missing", "no manifest"):
        file.unlink()
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        file.write_bytes(content[: len(content) // 2])
    assert run(["train", "--resume", "--output-dir", str(directory)], log=log) == 0, log.read_text()
    assert "step-00000006" in log.read_text()
    assert file.name in log.read_text()
    assert_same(directory, uninterrupted)


def test_no_whole_checkpoint_is_an_error(words, tmp_path) -> None:
    directory, log = tmp_path / "run", tmp_path / "log"
    assert run(at(words, directory), Strike(TRAINER, "Trainer.training_step", 13)) == -signal.SIGKILL
    for manifest in (tmp_path / "run.unfinished").rglob("manifest.json"):
        manifest.unlink()
    assert run(["train", "--resume", "--output-dir", str(directory)], log=log) == 2
    assert "all checkpoints are damaged" in log.read_text()


def test_an_unfinished_run_is_not_overwritten_unasked(words, tmp_path) -> None:
    directory, log = tmp_path / "run", tmp_path / "log"
    assert run(at(words, directory), Strike(TRAINER, "Trainer.training_step", 13)) == -signal.SIGKILL
    assert run(at(words, directory), log=log) == 2
    assert "checkpoint at step 6" in log.read_text()
    assert "--resume" in log.read_text()
    assert run([*at(words, directory), "--overwrite"]) == 0


def test_a_complete_run_that_is_not_in_its_place_is_not_overwritten_unasked(words, uninterrupted, tmp_path) -> None:
    directory, log = tmp_path / "run", tmp_path / "log"
    assert run(at(words, directory), Strike(DIRECTORY, "Path.rename", 9)) == -signal.SIGKILL
    assert run(at(words, directory), log=log) == 2
    assert "holds a complete run" in log.read_text()
    assert run(["train", "--resume", "--output-dir", str(directory)]) == 0
    assert_same(directory, uninterrupted)


def test_resuming_with_other_settings_or_data_is_refused(words, tmp_path) -> None:
    directory, log = tmp_path / "run", tmp_path / "log"
    assert run(at(words, directory), Strike(TRAINER, "Trainer.training_step", 13)) == -signal.SIGKILL
    assert run([*at(words, directory), "--resume", "--learning-rate", "0.1"], log=log) == 2
    assert "learning_rate=0.01" in log.read_text()
    data = Path(words[words.index("--data") + 1])
    content = data.read_text()
    try:
        data.write_text(content.replace("good", "great"))
        assert run(["train", "--resume", "--output-dir", str(directory)], log=log) == 2
    finally:
        data.write_text(content)
    assert "rows are not those the run started with" in log.read_text()
    assert run([*at(words, directory), "--resume"], log=log) == 0


def test_nothing_to_resume(tmp_path) -> None:
    log = tmp_path / "log"
    assert run(["train", "--resume", "--output-dir", str(tmp_path / "run")], log=log) == 2
    assert "there is no unfinished run" in log.read_text()


def test_nothing_written_is_a_pickle(words, tmp_path) -> None:
    directory = tmp_path / "run"
    assert run(at(words, directory), Strike(TRAINER, "Trainer.training_step", 13)) == -signal.SIGKILL
    files = [p for p in (tmp_path / "run.unfinished").rglob("*") if p.is_file()]
    assert len(files) > 8
    for file in files:
        assert file.suffix in {".safetensors", ".json", ".yaml", ""}, file
        assert file.read_bytes()[:1] != b"\x80", file  # how a pickle begins
        assert not file.read_bytes().startswith(b"PK"), file  # a zip, as torch.save writes
