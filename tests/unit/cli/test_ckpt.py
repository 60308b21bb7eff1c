"""`hvdtrain ckpt`: what it lists, finds and deletes, and that every wrong use is one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain.checkpoint_files import list_checkpoints
from hvdtrain.cli.ckpt import _date
from hvdtrain.files import move_aside
from hvdtrain.run.lock import RunLock
from tests.launch import environment
from tests.unit.cli.ckpt_runs import MIDDLE, NEWEST, OLDEST, Typed, flip, names, one_line


def test_ls_shows_all_and_marks_what_is_no_checkpoint(run: Path, ckpt: Typed) -> None:
    folder = run / "checkpoints"
    move_aside(Path(shutil.copytree(folder / OLDEST, folder / "e0001-s0000000000")))
    shutil.copytree(folder / OLDEST, folder / f"{NEWEST}-mine")
    for leftover in (f".{NEWEST}.part", f".{OLDEST}.gone"):
        (folder / leftover).mkdir()
    flip(folder / MIDDLE / "meta.json")
    (folder / "notes\x1b.txt").write_text("four")
    os.utime(folder / NEWEST / "meta.json", (1e9, 1e9))

    code, out, err = ckpt("ls", run, "--json")
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

    code, out, err = ckpt("ls", run)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 9
    assert lines[1].startswith(NEWEST)
    assert lines[1].endswith("newest")
    assert "damaged: " in lines[3]
    assert "\\x1b.txt" in out
    assert "\x1b" not in out


def test_ls_of_a_run_without_checkpoints(tmp_path: Path, ckpt: Typed) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert ckpt("ls", tmp_path) == (0, f"{tmp_path}: no checkpoints\n", "")


def test_verify_reads_every_byte(run: Path, ckpt: Typed) -> None:
    folder = run / "checkpoints"
    assert ckpt("verify", run) == (0, f"{NEWEST}: ok\n", "")
    flip(folder / OLDEST / "optimizer.safetensors")
    assert ckpt("verify", run)[0] == 0
    code, out, err = ckpt("verify", run, "--all")
    assert (code, err) == (4, "")
    assert out.splitlines()[:2] == [f"{NEWEST}: ok", f"{MIDDLE}: ok"]
    assert out.splitlines()[2].startswith(f"{OLDEST}: damaged: {folder / OLDEST}/optimizer.safeten")
    code, out, _ = ckpt("verify", folder / OLDEST, "--json")
    assert code == 4
    [verdict] = json.loads(out)["checkpoints"]
    assert verdict["state"] == "damaged"
    assert "sha256" in verdict["fault"]
    assert ckpt("verify", folder / MIDDLE) == (0, f"{MIDDLE}: ok\n", "")


def test_verify_names_a_checkpoint_that_may_be_the_newest(run: Path, ckpt: Typed) -> None:
    (run / "checkpoints" / NEWEST / "meta.json").unlink()
    code, out, _ = ckpt("verify", run)
    assert code == 4
    assert out.splitlines()[0] == f"{MIDDLE}: ok"
    assert out.splitlines()[1].startswith(f"{NEWEST}: damaged: ")
    assert ckpt("verify", run / "checkpoints" / NEWEST)[0] == 4


def test_prune_keeps_the_last_written(run: Path, ckpt: Typed) -> None:
    code, out, err = ckpt("prune", run, "--keep", 2, "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"would be deleted: {OLDEST}"
    assert names(run) == {OLDEST, MIDDLE, NEWEST}
    code, out, _ = ckpt("prune", run, "--keep", 2)
    assert code == 0
    assert out.splitlines()[0] == f"deleted: {OLDEST}"
    assert out.splitlines()[1].startswith(f"{run}: 1 deleted (")
    assert names(run) == {MIDDLE, NEWEST}
    assert ckpt("prune", run, "--keep", 5)[0] == 0
    assert names(run) == {MIDDLE, NEWEST}


def test_prune_never_counts_damaged_ones_nor_deletes_what_is_not_ours(
    run: Path, ckpt: Typed
) -> None:
    folder = run / "checkpoints"
    flip(folder / NEWEST / "model.safetensors")
    (folder / "e0000-s0000000000").symlink_to(OLDEST)
    shutil.copytree(folder / OLDEST, folder / "e0001-s0000000000")
    (folder / "e0001-s0000000000/notes.txt").write_text("mine")
    shutil.copytree(folder / OLDEST, folder / f"{OLDEST}-mine")
    before = names(run)
    code, out, _ = ckpt("prune", run, "--keep", 1, "--json")
    assert code == 0
    done = json.loads(out)
    assert (done["kept"], done["deleted"]) == ([MIDDLE], [OLDEST])
    assert set(done["left"]) == {NEWEST, "e0000-s0000000000", "e0001-s0000000000"}
    assert "notes.txt" in done["left"]["e0001-s0000000000"]
    assert names(run) == before - {OLDEST}
    flip(folder / MIDDLE / "model.safetensors")
    one_line(4, ckpt("prune", run, "--keep", 1), "no intact checkpoint: nothing is deleted")
    assert names(run) == before - {OLDEST}


CONFIG = "{{phases: [{{epochs: 1, image_size: 8, batch_per_worker: 1}}], checkpoint: {{{}}}}}"


def test_what_the_settings_of_the_run_keep(run: Path, ckpt: Typed) -> None:
    (run / "config.yaml").write_text(CONFIG.format("keep: 1, keep_every: 3"))
    code, out, _ = ckpt("ls", run, "--json")
    assert code == 0
    found = {entry["name"]: entry["kept"] for entry in json.loads(out)["checkpoints"]}
    ends = {NEWEST: ["last"], MIDDLE: [], OLDEST: ["epoch end", "every 3 epochs"]}
    assert found == ends
    lines = ckpt("ls", run)[1].splitlines()
    assert lines[1].endswith("newest; kept: last")
    assert lines[3].endswith("  kept: epoch end, every 3 epochs")

    code, out, _ = ckpt("prune", run, "--keep", 1, "--dry-run")
    assert code == 0
    assert out.splitlines()[:2] == [
        f"would be deleted: {MIDDLE}",
        f"kept: {OLDEST}: every 3 epochs",
    ]
    code, out, _ = ckpt("prune", run, "--keep", 1, "--keep-every", 0, "--keep-best", 1, "--dry-run")
    assert out.splitlines()[:2] == [f"would be deleted: {OLDEST}", f"would be deleted: {MIDDLE}"]

    (run / "config.yaml").write_text("phases: [}")
    assert ckpt("ls", run)[0] == 0
    one_line(2, ckpt("prune", run, "--keep", 1), "give --keep-best and --keep-every")
    assert ckpt("prune", run, "--keep", 1, "--keep-best", 0, "--keep-every", 0)[0] == 0
    assert names(run) == {NEWEST}


def test_prune_waits_for_no_job_and_disturbs_none(run: Path, ckpt: Typed) -> None:
    lock = RunLock(run)
    one_line(6, ckpt("prune", run, "--keep", 1), f"{run}: in use by another job (host ")
    one_line(6, ckpt("prune", run, "--keep", 1, "--dry-run"), "in use")
    lock.release()
    assert len(list_checkpoints(run / "checkpoints")) == 3
    assert ckpt("prune", run, "--keep", 1)[0] == 0
    RunLock(run).release()


def test_prune_says_what_the_disk_does_not_let_go(
    run: Path, ckpt: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == OLDEST:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    done = ckpt("prune", run, "--keep", 1)
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
    words: str, code: int, part: str, made: Path, tmp_path: Path, ckpt: Typed
) -> None:
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    (tmp_path / "file").touch()
    done = ckpt(*(word.format(tmp=tmp_path, run=made) for word in words.split()))
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


def test_a_date_that_no_clock_shows_is_a_dash() -> None:
    assert _date(1e18) == "-"
    assert _date(0.0).startswith(("1970-01-01 ", "1969-12-31 "))
