"""`hvdtrain data` as a user meets it: what is printed, and the exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from hvdtrain import activity
from hvdtrain.cli import data as data_cli
from hvdtrain.cli import main as cli
from pipelines.commands import pack_options

CONFIG = "phases: [{epochs: 1, image_size: 24, batch_per_worker: 2}, {epochs: 1, image_size: 60, batch_per_worker: 2}]\n"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hvdtrain", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def test_pack_plan_stage(run, folder, tmp_path):
    code, out, err = run(
        "data", "pack", folder, tmp_path / "p", "--short-side", "32,orig", "--threads", 1
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{tmp_path}/p: 21 images of 3 classes"
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["32", "orig"]
    packed = re.findall(r"([\d.]+ kB an image)", out)
    (tmp_path / "c.yaml").write_text(CONFIG)
    code, out, _err = run("plan", tmp_path / "c.yaml", f"data.train={tmp_path}/p")
    assert code == 0
    assert "epochs 0-1 read   copy 32 (" in out
    assert "epochs 1-2 read   copy orig (" in out
    assert re.findall(r"([\d.]+ kB an image)", out) == packed  # as data pack has said
    _code, out, _err = run("plan", tmp_path / "c.yaml", f"data.train={tmp_path}/p", "--json")
    assert [phase["reads"]["copy"] for phase in json.loads(out)["phases"]] == ["32", "orig"]
    code, out, _err = run("data", "stage", tmp_path / "p", tmp_path / "s", "--copies", "32")
    assert code == 0
    assert out.startswith(f"{tmp_path}/s: 2 files copied (")
    code, out, _err = run("data", "stage", tmp_path / "p", tmp_path / "s", "--json")
    assert (json.loads(out)["copied"], json.loads(out)["kept"]) == (1, 2)


def test_json_of_pack(run, folder, tmp_path):
    code, out, _err = run("data", "pack", folder, tmp_path / "p", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["images"] == 21
    assert report["copies"]["orig"]["size_bytes"] == (tmp_path / "p/orig/00000.tar").stat().st_size


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("pack", "{src}", "{src}/x"), 3, "DST: {src}/x: lies in SRC, which is only read"),
        (("pack", "{tmp}/none", "{tmp}/p"), 3, "SRC: {tmp}/none: no such folder; expected"),
        (("pack", "{src}", "{tmp}/p", "--short-side", "big"), 2, "--short-side big: "),
        (("pack", "{src}", "{tmp}/p", "--quality", "0"), 2, "Invalid value for '--quality'"),
        (("scan", "{tmp}/none"), 3, "PATH: {tmp}/none: no such folder; expected"),
        (("stage", "{tmp}/none", "{tmp}/p"), 3, "SRC: {tmp}/none: no such folder"),
    ],
)
def test_faults_are_one_line(run, folder, tmp_path, words, code, message):
    places = {"src": folder, "tmp": tmp_path}
    found, out, err = run("data", *(word.format(**places) for word in words))
    assert found == code
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message.format(**places) in err


def test_scan_ends_with_3_where_images_are_bad(run, folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "images")
    code, out, _err = run("data", "scan", root, "--output", tmp_path / "m.npz")
    assert code == 0
    assert "21 images of 3 classes (7 to 7 in a class)" in out
    (root / "ant/bad.jpg").write_text("x")
    code, out, _err = run("data", "scan", root)
    assert code == 3
    assert f"    {root}/ant/bad.jpg: not an image" in out
    code, out, _err = run("data", "scan", root, "--json")
    assert code == 3
    assert json.loads(out)["bad"] == [{"name": f"{root}/ant/bad.jpg", "reason": "not an image"}]


def test_pack_with_bad_images(run, folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "images")
    (root / "ant/bad.jpg").write_text("x")
    code, _out, err = run("data", "pack", root, tmp_path / "p")
    assert code == 3
    assert err.splitlines()[1] == "hvdtrain: error: ant/bad.jpg: not an image"
    code, out, _err = run("data", "pack", root, tmp_path / "p", "--skip-bad")
    assert code == 0
    assert "left out: ant/bad.jpg: not an image" in out


def test_defaults_are_those_of_the_library():
    from inspect import signature

    defaults = {name: p.default for name, p in signature(data_cli.pack).parameters.items()}
    assert defaults["quality"] == pack_options.QUALITY
    assert defaults["shard_images"] == pack_options.SHARD_IMAGES


def test_help_imports_nothing_heavy():
    code = (
        "import sys, hvdtrain.cli.main\n"
        "sys.argv = ['hvdtrain', 'data', 'pack', '--help']\n"
        "try:\n    hvdtrain.cli.main.main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'horovod', 'nvidia', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    repository = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, capture_output=True)


def test_names_that_are_not_utf8_or_have_control_characters_are_escaped(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "images")
    (root / os.fsdecode(b"ant/caf\xe9.jpg")).write_text("x")
    (root / "ant/two\nlines\x1b[31m.jpg").write_text("x")
    (root / "bee/é.gif").write_text("x")
    for encoding in ("utf-8:strict", "ascii:strict"):
        done = subprocess.run(
            [sys.executable, "-m", "hvdtrain", "data", "scan", root],
            cwd=Path(__file__).resolve().parents[3],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
        )
        assert done.returncode == 3, done.stderr
        text = done.stdout.decode()  # click writes UTF-8 where ASCII is asked for
        assert rf"    {root}/ant/caf\udce9.jpg: not an image" in text
        assert rf"    {root}/ant/two\nlines\x1b[31m.jpg: not an image" in text
        assert "  left out: .gif 1 (first: bee/" in text


def test_pack_and_stage_tell_what_they_leave_out(run, folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "images")
    (root / "ant/x.gif").write_text("x")
    (root / "cow").symlink_to("none")
    _code, out, _err = run("data", "pack", root, tmp_path / "p")
    line = "  left out: .gif 1, dangling class folder cow 1 (first: ant/x.gif)"
    assert out.splitlines()[-1] == line
    _code, out, _err = run("data", "pack", root, tmp_path / "p")  # nothing to do any more
    assert out.splitlines()[-1] == line
    _code, out, _err = run("data", "stage", root, tmp_path / "s")
    assert out.splitlines()[-1] == "  left out: dangling links 1 (first: cow)"
    (root / "ant/x.gif").unlink()
    _code, out, _err = run("data", "stage", root, tmp_path / "s")
    assert "  1 files that SRC does not have stay (--delete removes them): ant/x.gif" in out
    _code, out, _err = run("data", "stage", root, tmp_path / "s", "--delete")
    assert "  1 files that SRC does not have were deleted: ant/x.gif" in out


def test_columns_of_a_list(run, folder, tmp_path):
    table = folder.parent / "l.csv"
    table.write_text("photo,w,kind\n" + "".join(f"{folder}/ant/{k}.JPEG,1,x\n" for k in range(3)))
    code, out, _err = run("data", "scan", table, "--columns", "photo,kind")
    assert (code, out.splitlines()[0].partition(": ")[2][:30]) == (
        0,
        "3 images of 1 classes (3 to 3 ",
    )
    code, out, _err = run("data", "pack", table, tmp_path / "p", "--columns", "photo, kind")
    assert (code, out.splitlines()[0]) == (0, f"{tmp_path}/p: 3 images of 1 classes")
    code, _out, err = run("data", "scan", table, "--columns", "photo")
    assert (code, "--columns photo: expected PATH,LABEL" in err) == (2, True)
    code, _out, err = run("data", "scan", table)
    assert (code, len(err.splitlines())) == (3, 1)


def test_a_full_disk_does_not_lose_the_report(run, folder, tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.commands.scan.write_manifest", refuse)
    code, out, err = run("data", "scan", folder, "--output", tmp_path / "m.npz")
    assert code == 6
    assert "21 images of 3 classes" in out
    assert "m.npz: cannot be written: No space left on device" in err


def test_a_folder_without_labels_is_scanned(run, folder):
    code, out, _err = run("data", "scan", folder / "ant")
    assert code == 0
    assert "7 images of no classes (to train on them, " in out


def test_a_command_shows_its_stages_from_the_beginning(run, folder, tmp_path, monkeypatch):
    folder, shards = shutil.copytree(folder, tmp_path / "images"), tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "a.tar", "w") as tar:
        image = min((folder / "ant").iterdir())
        (tmp_path / "0.cls").write_text("3")
        tar.add(image, f"0{image.suffix}")
        tar.add(tmp_path / "0.cls", "0.cls")
    stages, enter = [], activity.enter
    monkeypatch.setattr(activity, "enter", lambda *stage: (stages.append(stage), enter(*stage)))
    for words, counted in (
        (("scan", folder), None),
        (("pack", folder, tmp_path / "p"), ("packing", 21, "images")),
        (("stage", folder, tmp_path / "s"), ("staging", 1, "MB")),
        (("index", shards), ("reading headers", 1, "shards")),
    ):
        stages.clear()
        code, _out, err = run("data", *words)
        assert (code, err) == (0, "")
        assert stages[0] == ("listing the dataset",)
        assert stages[1:-1] == ([counted] if counted else [])
        assert stages[-1][0].endswith(": finishing")
