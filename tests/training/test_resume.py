"""A run that is stopped anywhere can be resumed and ends as if it had never been stopped, bit for bit."""

import gc
import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alloralib.cli.main import main
from alloralib.records import RunRecord
from alloralib.training import checkpoints

from .processes import Point, cut, locate, run

TRAINER = "transformers"
CHECKPOINTS = "alloralib.training.checkpoints"
DIRECTORY = "alloralib.training.directory"
PREPARE = "alloralib.training.prepare"
RESULTS = "alloralib.training.results"
RUN = "alloralib.training.run"

# 15 steps in 3 epochs of 5 (two forward passes each, the last of an epoch one), a checkpoint every 2 steps and a validation
# every 3
STOPPED = [
    Point(RUN, "prepare"),
    Point(RUN, "preflight", when="after"),
    Point(TRAINER, "Trainer.training_step", 1),
    Point(TRAINER, "Trainer.training_step", 5),
    Point(TRAINER, "Trainer.training_step", 8, "after"),
    Point(TRAINER, "Trainer.training_step", 9),
    Point(TRAINER, "Trainer.training_step", 14),
    Point(TRAINER, "Trainer.training_step", 20),  # the checkpoint is that of step 10, at the end of an epoch
    Point(TRAINER, "Trainer.training_step", 24, "after"),
    Point(CHECKPOINTS, "save_file", 1),
    Point(CHECKPOINTS, "save_file", 1, "torn"),
    Point(CHECKPOINTS, "save_file", 4, "torn"),
    Point(CHECKPOINTS, "save_file", 8, "after"),
    Point(CHECKPOINTS, "sync", 1),
    Point(CHECKPOINTS, "sync", 12),
    Point(CHECKPOINTS, "Path.rename", 1),
    Point(CHECKPOINTS, "Path.rename", 3, "after"),
    Point(CHECKPOINTS, "shutil.rmtree", 5),
    Point(PREPARE, "Run.validate", 2),
    Point(PREPARE, "Run.test", 2),
    Point(RESULTS, "RunRecord.write"),
    Point(RESULTS, "RunRecord.write", when="after"),
    Point(DIRECTORY, "Path.rename", 9),  # after those of eight checkpoints
    Point(DIRECTORY, "RunDirectory.publish", when="after"),
]
MIDDLE = Point(TRAINER, "Trainer.training_step", 13)  # checkpoints of steps 4 and 6 are there
COMPLETE = Point(DIRECTORY, "Path.rename", 9)


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_collect() -> Iterator[None]:
    """accelerate collects garbage in every run; what exists by now need not be looked through."""
    gc.collect()
    gc.freeze()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    """No figure, and no waiting for the disk: a killed process loses nothing that it has handed to the kernel."""
    quick(monkeypatch)


def quick(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("alloralib.reporting.curve.draw_loss", lambda record, path: path.write_bytes(b""))
    patch.setattr("os.fsync", lambda descriptor: None)


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
def whole(words, tmp_path_factory) -> Path:
    """A directory with `run`, never stopped, and for every point the files that there were then, in a directory of its name."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        for point in [*STOPPED, MIDDLE]:
            point.arm(lambda torn, point=point: _copy(root, str(point), torn), patch)
        assert main(at(words, root / "run")) == 0
    record = RunRecord.read(root / "run" / "record.json")
    assert [entry["step"] for entry in record.history] == list(range(1, 16))
    return root


def _copy(root: Path, name: str, torn: Path | None) -> None:
    (root / name).mkdir()
    for directory in root.glob("run*"):
        shutil.copytree(directory, root / name / directory.name)
    if torn is not None:
        cut(root / name / torn.relative_to(root))


@pytest.fixture
def stopped(whole, tmp_path):
    """Puts what a stop at some point left into `tmp_path`, and gives the run's final directory."""

    def put(point: Point) -> Path:
        shutil.copytree(whole / str(point), tmp_path, dirs_exist_ok=True)
        return tmp_path / "run"

    return put


def resume(directory: Path) -> int:
    return main(["train", "--resume", "--output-dir", str(directory)])


def assert_same(directory: Path, other: Path) -> None:
    assert (directory / "adapter_model.safetensors").read_bytes() == (other / "adapter_model.safetensors").read_bytes()
    assert (directory / "predictions.jsonl").read_bytes() == (other / "predictions.jsonl").read_bytes()
    records = [RunRecord.read(d / "record.json") for d in (directory, other)]
    for name in ("metrics", "history", "validation", "rule", "data", "adapter"):
        assert getattr(records[0], name) == getattr(records[1], name), name
    assert {p.name for p in directory.iterdir()} == {p.name for p in other.iterdir()}


@pytest.mark.parametrize("point", STOPPED, ids=str)
def test_stopped_and_resumed_ends_bit_identical(whole, stopped, tmp_path, point: Point) -> None:
    directory = stopped(point)
    if point.name != "RunDirectory.publish":
        assert not directory.exists(), "nothing stands under the final name before the run is complete"
        assert resume(directory) == 0
    assert_same(directory, whole / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


KILLED = [Point(TRAINER, "Trainer.training_step", 9), Point(CHECKPOINTS, "save_file", 4, "torn"), COMPLETE]


@pytest.mark.parametrize("point", KILLED, ids=str)
def test_a_kill_leaves_what_the_copy_holds(words, whole, tmp_path, point: Point) -> None:
    """In processes of their own: one that is killed, and one that resumes."""
    directory, log = tmp_path / "run", tmp_path / "log"
    assert run(at(words, directory), point) == -signal.SIGKILL
    left, copied = (
        {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} for root in (tmp_path, whole / str(point))
    )
    assert left == copied
    assert run(["train", "--resume", "--output-dir", str(directory)], log=log) == 0, log.read_text()
    assert_same(directory, whole / "run")


@pytest.mark.parametrize("forgotten", ["restore_random", "restore_optimizer", "restore_weights", "BucketBatches.set_epoch"])
def test_the_test_above_can_fail(whole, stopped, monkeypatch, forgotten: str) -> None:
    """A resume that forgets one thing ends with another adapter."""
    directory = stopped(Point(TRAINER, "Trainer.training_step", 14))
    monkeypatch.setattr(*locate("alloralib.training.trainer", forgotten), lambda *args: None)
    assert resume(directory) == 0
    name = "adapter_model.safetensors"
    assert (directory / name).read_bytes() != (whole / "run" / name).read_bytes()


def test_a_checkpoint_is_read_once(stopped, monkeypatch) -> None:
    """Every file of it is hashed once, and every tensor file loaded once."""
    directory = stopped(MIDDLE)
    newest = checkpoints.path_of(directory.with_name("run.unfinished") / "checkpoints", 6)
    files = {path.name for path in newest.iterdir()}
    hashed: list[str] = []
    loaded: list[str] = []
    for name, seen in (("sha256", hashed), ("load_file", loaded)):
        right = getattr(checkpoints, name)
        spy = lambda path, right=right, seen=seen: (seen.append(path.name) if path.parent == newest else None, right(path))[1]  # noqa: E731
        monkeypatch.setattr(checkpoints, name, spy)
    assert resume(directory) == 0
    assert sorted(hashed) == sorted(files - {"manifest.json"})
    assert sorted(loaded) == sorted(name for name in files if name.endswith(".safetensors"))


def test_stopped_while_it_replaces_a_run(words, whole, tmp_path, monkeypatch) -> None:
    """The old run is not lost before the new one stands in its place."""
    directory = tmp_path / "run"
    shutil.copytree(whole / "run", directory)
    (directory / "mine").write_text("of the old run")
    point = Point(DIRECTORY, "Path.rename", 10)
    with monkeypatch.context() as patch:
        point.arm(lambda torn: _copy(tmp_path, "then", torn), patch)
        assert main([*at(words, directory), "--overwrite"]) == 0
    then = tmp_path / "then"
    assert (then / "run.replaced" / "mine").exists()
    assert resume(then / "run") == 0
    assert_same(then / "run", whole / "run")
    assert [p.name for p in then.iterdir()] == ["run"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(words, whole, tmp_path, number: int) -> None:
    directory, log = tmp_path / "run", tmp_path / "log"
    point = Point(TRAINER, "Trainer.training_step", 9)
    assert run(at(words, directory), point, number, log) == 128 + number
    assert "a checkpoint is in" in log.read_text()
    assert "--resume" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert (tmp_path / "run.unfinished" / "checkpoints" / "step-00000005").is_dir()
    assert resume(directory) == 0
    assert_same(directory, whole / "run")


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "no manifest", "bad manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(whole, stopped, capsys, damage: str) -> None:
    directory = stopped(MIDDLE)
    newest = directory.with_name("run.unfinished") / "checkpoints" / "step-00000006"
    file = newest / ("manifest.json" if "manifest" in damage else "optimizer.safetensors")
    content = file.read_bytes()
    if damage in ("missing", "no manifest"):
        file.unlink()
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        cut(file)
    assert resume(directory) == 0
    log = capsys.readouterr().err
    assert "step-00000006" in log
    assert file.name in log
    assert_same(directory, whole / "run")


def test_no_undamaged_checkpoint_is_an_error(stopped, capsys) -> None:
    directory = stopped(MIDDLE)
    for manifest in directory.with_name("run.unfinished").rglob("manifest.json"):
        manifest.unlink()
    assert resume(directory) == 2
    assert "all checkpoints are damaged" in capsys.readouterr().err


def test_an_unfinished_run_is_not_overwritten_unasked(words, stopped, capsys) -> None:
    directory = stopped(MIDDLE)
    assert main(at(words, directory)) == 2
    log = capsys.readouterr().err
    assert "checkpoint at step 6" in log
    assert "--resume" in log
    assert main([*at(words, directory), "--overwrite"]) == 0


def test_a_complete_run_that_is_not_in_its_place_is_not_overwritten_unasked(words, whole, stopped, capsys) -> None:
    directory = stopped(COMPLETE)
    assert main(at(words, directory)) == 2
    assert "holds a complete run" in capsys.readouterr().err
    assert resume(directory) == 0
    assert_same(directory, whole / "run")


def test_resuming_with_other_settings_or_data_is_refused(words, stopped, capsys) -> None:
    directory = stopped(MIDDLE)
    assert main([*at(words, directory), "--resume", "--learning-rate", "0.1"]) == 2
    assert "learning_rate=0.01" in capsys.readouterr().err
    data = Path(words[words.index("--data") + 1])
    content = data.read_text()
    try:
        data.write_text(content.replace("good", "great"))
        assert resume(directory) == 2
    finally:
        data.write_text(content)
    assert "rows are not those the run started with" in capsys.readouterr().err
    assert main([*at(words, directory), "--resume"]) == 0


def test_resuming_with_another_base_is_refused_and_with_a_moved_one_it_goes_on(words, whole, stopped, tmp_path, capsys) -> None:
    directory = stopped(MIDDLE)
    base = Path(words[words.index("--model") + 1])
    shutil.copytree(base, tmp_path / "moved")
    shutil.copytree(base, tmp_path / "other")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    again = ["train", "--resume", "--output-dir", str(directory), "--model"]
    assert main([*again, str(tmp_path / "other")]) == 2
    message = capsys.readouterr().err
    assert re.search("not the one the run started with: its weights have the sha256 .*\n  remedy: .*--overwrite", message)
    assert "Traceback" not in message
    assert directory.with_name("run.unfinished").is_dir()
    assert main([*again, str(tmp_path / "moved")]) == 0
    shutil.rmtree(tmp_path / "moved")
    shutil.rmtree(tmp_path / "other")
    assert_same(directory, whole / "run")


def test_a_checkpoint_without_the_identity_of_its_base_is_resumed_with_the_same_name_only(words, stopped, capsys) -> None:
    directory = stopped(MIDDLE)
    for state in directory.with_name("run.unfinished").rglob("state.json"):
        content = json.loads(state.read_text())
        del content["run"]["base"]
        state.write_text(json.dumps(content))
        manifest = json.loads((state.parent / "manifest.json").read_text())
        manifest["sha256"]["state.json"] = checkpoints.sha256(state)
        (state.parent / "manifest.json").write_text(json.dumps(manifest))
    assert main(["train", "--resume", "--output-dir", str(directory), "--model", "elsewhere"]) == 2
    assert "the run was started with model=" in capsys.readouterr().err
    assert resume(directory) == 0


def test_nothing_to_resume(tmp_path, capsys) -> None:
    assert resume(tmp_path / "run") == 2
    assert "there is no unfinished run" in capsys.readouterr().err


def test_nothing_written_is_a_pickle(stopped) -> None:
    directory = stopped(MIDDLE)
    files = [p for p in directory.with_name("run.unfinished").rglob("*") if p.is_file()]
    assert len(files) > 8
    for file in files:
        assert file.suffix in {".safetensors", ".json", ".yaml", ""}, file
        assert file.read_bytes()[:1] != b"\x80", file  # how a pickle begins
        assert not file.read_bytes().startswith(b"PK"), file  # a zip, as torch.save writes
