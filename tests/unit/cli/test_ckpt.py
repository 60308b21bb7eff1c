"""`hvdtrain ckpt`: what it lists, finds and deletes, and that every wrong use is one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hvdtrain.checkpoint_files import list_checkpoints
from hvdtrain.cli.main import main
from hvdtrain.engine.checkpoint import contents, metadata, move_aside, write_checkpoint
from hvdtrain.engine.progress import Progress
from hvdtrain.engine.step import State, train_step
from hvdtrain.plan.epochs import Position
from hvdtrain.run.lock import RunLock
from tests.launch import environment
from tests.step_samples import images, network, state_of

LABELS = {"model": "tiny", "classes": 7}

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types `hvdtrain ckpt WORDS`: exit code, standard output, standard error."""

    def type_(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hvdtrain", "ckpt", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert isinstance(stop.value.code, int)
        return stop.value.code, *capsys.readouterr()

    return type_


def save(root: Path, state: State, epoch: int, sample: int = 0, **about: Any) -> Path:
    at = Position(epoch, sample)
    state.progress = Progress(at, state.progress.step, 10 * epoch, 1.25 * epoch)
    meta = metadata(state, LABELS, about)
    return write_checkpoint(contents(state), meta, root / "checkpoints", 99).path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints: the furthest is the first written."""
    root = tmp_path_factory.mktemp("made") / "run"
    state = state_of(network(norm=True))
    config: dict[str, Any] = {"lr": {"base": 0.1}, "phases": [{"epochs": 4}]}
    for number, epoch in enumerate((9, 2, 3)):
        if epoch == 3:
            config = {"lr": {"base": 0.2}, "phases": [{"epochs": 4}, {"epochs": 1}]}
        save(root, state, epoch, 20 * number, config=config)
        train_step(state, images(6, number), 0.1, 0.9)
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "run"))


OLDEST, MIDDLE, NEWEST = "e0009-s0000000000", "e0002-s0000000020", "e0003-s0000000040"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def one_line(code: int, done: tuple[int, str, str], *parts: str) -> None:
    assert done[0] == code, done
    [line] = done[2].splitlines()
    assert line.startswith("hvdtrain: error: ")
    for part in parts:
        assert part in line


def test_ls_shows_all_and_marks_what_is_no_checkpoint(run: Path, typed: Typed) -> None:
    folder = run / "checkpoints"
    move_aside(Path(shutil.copytree(folder / OLDEST, folder / "e0001-s0000000000")))
    shutil.copytree(folder / OLDEST, folder / f"{NEWEST}-mine")
    for leftover in (f".{NEWEST}.part", f".{OLDEST}.gone"):
        (folder / leftover).mkdir()
    flip(folder / MIDDLE / "meta.json")
    (folder / "notes\x1b.txt").write_text("four")
    os.utime(folder / NEWEST / "meta.json", (1e9, 1e9))

    code, out, err = typed("ls", run, "--json")
    assert (code, err) == (0, "")
    found = {entry["name"]: entry for entry in json.loads(out)["checkpoints"]}
    assert {name: entry["kind"] for name, entry in found.items()} == {
        NEWEST: "checkpoint",
        OLDEST: "checkpoint",
        MIDDLE: "damaged",
        "damaged-e0001-s0000000000": "set aside",
        f"{NEWEST}-mine": "other",
        f".{NEWEST}.part": "unfinished",
        f".{OLDEST}.gone": "half deleted",
        "notes\x1b.txt": "other",
    }
    assert list(found)[:3] == [NEWEST, OLDEST, MIDDLE]
    assert [name for name, entry in found.items() if entry["newest"]] == [NEWEST]
    newest = found[NEWEST]
    assert (newest["epoch"], newest["sample"], newest["step"]) == (3, 40, 2)
    assert newest["written"] == 1e9
    assert newest["size_bytes"] == sum(f.stat().st_size for f in (folder / NEWEST).iterdir())
    assert found["notes\x1b.txt"]["size_bytes"] == 4
    assert (found[MIDDLE]["epoch"], found[MIDDLE]["step"]) == (2, None)

    code, out, err = typed("ls", run)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 9
    assert lines[1].startswith(NEWEST)
    assert lines[1].endswith("newest")
    assert "damaged: " in lines[3]
    assert "\\x1b.txt" in out
    assert "\x1b" not in out


def test_ls_of_a_run_without_checkpoints(tmp_path: Path, typed: Typed) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert typed("ls", tmp_path) == (0, f"{tmp_path}: no checkpoints\n", "")


def test_verify_reads_every_byte(run: Path, typed: Typed) -> None:
    folder = run / "checkpoints"
    assert typed("verify", run) == (0, f"{NEWEST}: ok\n", "")
    flip(folder / OLDEST / "optimizer.safetensors")
    assert typed("verify", run)[0] == 0
    code, out, err = typed("verify", run, "--all")
    assert (code, err) == (4, "")
    assert out.splitlines()[:2] == [f"{NEWEST}: ok", f"{MIDDLE}: ok"]
    assert out.splitlines()[2].startswith(f"{OLDEST}: damaged: {folder / OLDEST}/optimizer.safeten")
    code, out, _ = typed("verify", folder / OLDEST, "--json")
    assert code == 4
    [verdict] = json.loads(out)["checkpoints"]
    assert verdict["state"] == "damaged"
    assert "sha256" in verdict["fault"]
    assert typed("verify", folder / MIDDLE) == (0, f"{MIDDLE}: ok\n", "")


def test_verify_names_a_checkpoint_that_may_be_the_newest(run: Path, typed: Typed) -> None:
    (run / "checkpoints" / NEWEST / "meta.json").unlink()
    code, out, _ = typed("verify", run)
    assert code == 4
    assert out.splitlines()[0] == f"{MIDDLE}: ok"
    assert out.splitlines()[1].startswith(f"{NEWEST}: damaged: ")
    assert typed("verify", run / "checkpoints" / NEWEST)[0] == 4


def test_diff_of_equal_checkpoints(run: Path, tmp_path: Path, typed: Typed) -> None:
    code, out, err = typed("diff", run, run / "checkpoints" / NEWEST)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "equal"
    assert "model.safetensors: all 9 tensors are equal" in out
    for root in ("a", "b"):  # the same training, at another speed and after other checkpoints
        state = state_of(network(norm=True))
        if root == "b":
            save(tmp_path / root, state, 0)
        save(tmp_path / root, state, 1)
    code, out, _ = typed("diff", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "not counted: number 1 → 2\n" in out


def test_diff_names_settings_and_tensors(run: Path, typed: Typed) -> None:
    folder = run / "checkpoints"
    code, out, err = typed("diff", folder / MIDDLE, folder / NEWEST, "--json")
    assert (code, err) == (1, "")
    found = json.loads(out)
    assert not found["equal"]
    settings = {one["key"]: (one["a"], one["b"]) for one in found["settings"]}
    assert settings["position.epoch"] == (2, 3)
    assert settings["config.lr.base"] == (0.1, 0.2)
    assert settings["config.phases.1"] == (None, {"epochs": 1})
    assert "number" not in settings
    files = [folder / each / "model.safetensors" for each in (MIDDLE, NEWEST)]
    a, b = map(safetensors.torch.load_file, files)
    shown = {one["name"]: one for one in found["files"]["model.safetensors"]["differing"]}
    assert set(shown) == {name for name in a if not torch.equal(a[name], b[name])}
    for name, one in shown.items():
        apart = a[name].double() - b[name].double()
        assert one["largest"] == apart.abs().max().item()
        assert one["elements"] == int((apart != 0).sum())
    code, out, _ = typed("diff", folder / MIDDLE, folder / NEWEST)
    assert code == 1
    assert "  config.lr.base 0.1 → 0.2\n" in out
    largest = max(one["largest"] for one in shown.values())
    counts = f"{len(shown)} of {len(a)} tensors differ, largest difference {largest:.6g} ("
    assert f"model.safetensors: {counts}" in out
    assert out.endswith("different\n")


def with_weights(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A checkpoint with these in place of the weights."""
    state = state_of(network(norm=True))
    files = {**contents(state), "model.safetensors": weights}
    return write_checkpoint(files, metadata(state, LABELS), folder, 9).path


def test_diff_of_other_names_types_shapes_and_values(tmp_path: Path, typed: Typed) -> None:
    one = {
        "same": torch.ones(3),
        "shape": torch.ones(2, 3),
        "type": torch.tensor([1.0, 2.0]),
        "sign": torch.tensor([0.0, 1.0]),
        "count": torch.tensor(2**60),
        "gone": torch.ones(1),
        "nan": torch.tensor([float("nan"), 1.0]),
        "empty": torch.ones(0),
        "half": torch.tensor([1.0, 4.0]).bfloat16(),
    }
    two = {
        "same": torch.ones(3),
        "shape": torch.ones(3, 2),
        "type": torch.tensor([1.0, 2.5]).half(),
        "sign": torch.tensor([-0.0, 1.0]),
        "count": torch.tensor(2**60 + 1),
        "new": torch.ones(1),
        "empty": torch.ones(0),
        "nan": torch.tensor([float("nan"), 3.0]),
        "half": torch.tensor([1.0, 5.0]).bfloat16(),
    }
    a, b = with_weights(tmp_path / "a", one), with_weights(tmp_path / "b", two)
    code, out, _ = typed("diff", a, b, "--json")
    assert code == 1
    found = json.loads(out)["files"]["model.safetensors"]
    assert (found["only_a"], found["only_b"]) == (["gone"], ["new"])
    assert {form["key"]: (form["a"], form["b"]) for form in found["forms"]} == {
        "shape": ("F32 [2, 3]", "F32 [3, 2]"),
        "type": ("F32 [2]", "F16 [2]"),
    }
    assert {each["name"]: (each["elements"], each["largest"]) for each in found["differing"]} == {
        "count": (1, 1.0),
        "half": (1, 1.0),
        "nan": (1, 2.0),
        "sign": (1, 0.0),
        "type": (1, 0.5),
    }
    two["nan"][1] = float("inf")
    code, out, _ = typed("diff", a, with_weights(tmp_path / "c", two))
    assert code == 1
    assert "5 of 8 tensors differ, largest difference not finite (nan)" in out
    assert "  only in A: gone\n" in out


def test_diff_refuses_a_damaged_one(run: Path, typed: Typed) -> None:
    folder = run / "checkpoints"
    flip(folder / MIDDLE / "model.safetensors")
    one_line(4, typed("diff", folder / NEWEST, folder / MIDDLE), "model.safetensors: damaged")


def test_prune_keeps_the_last_written(run: Path, typed: Typed) -> None:
    code, out, err = typed("prune", run, "--keep", 2, "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"would be deleted: {OLDEST}"
    assert names(run) == {OLDEST, MIDDLE, NEWEST}
    code, out, _ = typed("prune", run, "--keep", 2)
    assert code == 0
    assert out.splitlines()[0] == f"deleted: {OLDEST}"
    assert out.splitlines()[1].startswith(f"{run}: 1 checkpoints deleted (")
    assert names(run) == {MIDDLE, NEWEST}
    assert typed("prune", run, "--keep", 5)[0] == 0
    assert names(run) == {MIDDLE, NEWEST}


def test_prune_never_counts_damaged_ones_nor_deletes_what_is_not_ours(
    run: Path, typed: Typed
) -> None:
    folder = run / "checkpoints"
    flip(folder / NEWEST / "model.safetensors")
    (folder / "e0000-s0000000000").symlink_to(OLDEST)
    shutil.copytree(folder / OLDEST, folder / "e0001-s0000000000")
    (folder / "e0001-s0000000000/notes.txt").write_text("mine")
    shutil.copytree(folder / OLDEST, folder / f"{OLDEST}-mine")
    before = names(run)
    code, out, _ = typed("prune", run, "--keep", 1, "--json")
    assert code == 0
    done = json.loads(out)
    assert (done["kept"], done["deleted"]) == ([MIDDLE], [OLDEST])
    assert set(done["left"]) == {NEWEST, "e0000-s0000000000", "e0001-s0000000000"}
    assert "notes.txt" in done["left"]["e0001-s0000000000"]
    assert names(run) == before - {OLDEST}
    flip(folder / MIDDLE / "model.safetensors")
    one_line(4, typed("prune", run, "--keep", 1), "no intact checkpoint: nothing is deleted")
    assert names(run) == before - {OLDEST}


def test_prune_waits_for_no_job_and_disturbs_none(run: Path, typed: Typed) -> None:
    lock = RunLock(run)
    one_line(6, typed("prune", run, "--keep", 1), f"{run}: in use by another job (host ")
    one_line(6, typed("prune", run, "--keep", 1, "--dry-run"), "in use")
    lock.release()
    assert len(list_checkpoints(run / "checkpoints")) == 3
    assert typed("prune", run, "--keep", 1)[0] == 0
    RunLock(run).release()


def test_prune_says_what_the_disk_does_not_let_go(
    run: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == OLDEST:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    done = typed("prune", run, "--keep", 1)
    one_line(6, done, f"{OLDEST}: cannot be deleted: Permission denied")
    assert done[1].splitlines()[0] == f"deleted: {MIDDLE}"
    assert names(run) == {OLDEST, NEWEST}


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ("ls", 2, "RUN is missing; see hvdtrain ckpt ls --help"),
        ("ls {tmp}/none", 4, "none: cannot be read: No such file"),
        ("ls {tmp}", 4, "neither a run directory nor a checkpoint"),
        ("ls {tmp}/file", 4, "neither a run directory nor a checkpoint"),
        ("verify {tmp}", 4, "neither a run directory nor a checkpoint"),
        ("verify {tmp}/empty", 4, "no checkpoint"),
        ("verify {tmp}/e0001-s0000000000", 4, "no such checkpoint"),
        ("verify {run}/checkpoints/" + NEWEST + " --all", 2, "expected a run directory"),
        ("verify {run} --al", 2, "did you mean --all?"),
        ("diff {run}", 2, "B is missing"),
        ("diff {run} {tmp}/empty", 4, "no checkpoint"),
        ("prune {run}", 2, "--keep is missing; see hvdtrain ckpt prune --help"),
        ("prune {run} --keep 0", 2, "greater than or equal to 1"),
        ("prune {run} --keep -1", 2, "greater than or equal to 1"),
        ("prune {run} --keep x", 2, "valid integer"),
        ("prune {run}/checkpoints/" + NEWEST + " --keep 1", 2, "expected a run directory"),
        ("prune {tmp}/empty --keep 1", 4, "no intact checkpoint"),
        ("prunne", 2, "No such command 'prunne'"),
    ],
)
def test_wrong_use_is_one_line(
    words: str, code: int, part: str, made: Path, tmp_path: Path, typed: Typed
) -> None:
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    (tmp_path / "file").touch()
    done = typed(*(word.format(tmp=tmp_path, run=made) for word in words.split()))
    one_line(code, done, part)
    assert done[1] == ""


def test_no_torch_where_no_tensors_differ(made: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from hvdtrain.cli.main import app\n"
        f"for words in (['ls', r'{made}'], ['verify', r'{made}', '--all'], "
        f"['prune', r'{tmp_path / 'run'}', '--keep', '1'], ['diff', r'{made}', r'{made}']):\n"
        "    assert not app(['ckpt', *words], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    shutil.copytree(made, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
