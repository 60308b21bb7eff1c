"""`hvdtrain data` as a user meets it: what is printed, and the exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    (tmp_path / "c.yaml").write_text(CONFIG)
    code, out, _err = run("plan", tmp_path / "c.yaml", f"data.train={tmp_path}/p")
    assert code == 0
    assert "epochs 0-1 read   copy 32 (" in out
    assert "epochs 1-2 read   copy orig (" in out
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
