"""Every command of README and docs: its options exist, and it is run here or listed with the reason.

The list is the last table of docs/reference/commands.md.
"""

from __future__ import annotations

import fnmatch
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main
from typer.testing import CliRunner

from hvdtrain.cli.main import app
from hvdtrain.config.load import load_config
from tests.launch import REPOSITORY
from tests.report_runs import restarted
from tests.unit.docs.pages import PAGES, Command, commands

ALL = [command for page in PAGES for command in commands(page)]
TABLE = REPOSITORY / "docs/reference/commands.md"
RUN_HERE = ("plan", "report", "compare RUN", "data", "models", "scaling predict", "launch slurm")
"""Commands of hvdtrain that are run on small data, where no launcher starts them."""


def run_here(command: Command) -> bool:
    words = command.words
    if words[:2] == ("hvdtrain", "launch") and "--hosts" in words:
        return True  # with --dry-run
    return words[0] == "hvdtrain" and " ".join(words[1:]).startswith(RUN_HERE)


def listed() -> dict[str, str]:
    """Pattern of a command → the test that runs it, or why none does."""
    rows = TABLE.read_text().rpartition("|---|---|\n")[2]
    return dict(re.findall(r"^\| `(.*?)` \| (.*) \|$", rows, re.MULTILINE))


def test_every_command_is_run_here_or_listed() -> None:
    patterns = listed()
    used = set()
    for command in ALL:
        if not run_here(command):
            fits = {p for p in patterns if fnmatch.fnmatchcase(command.text, p)}
            assert fits, f"{command.page}: neither run nor in {TABLE.name}: {command.text}"
            used |= fits
    assert used == set(patterns), "rows for commands that no page has"


def test_what_is_listed_is_a_test_or_a_reason() -> None:
    for pattern, reason in listed().items():
        assert reason.startswith(("`", "not run: ")), pattern
        for name in re.findall(r"`(tests/[\w/]+\.py|\.ci/run)`", reason):
            assert (REPOSITORY / name).exists(), f"{pattern}: {name}"


def test_the_reference_lists_all_commands() -> None:
    named = re.findall(r"^\| `hvdtrain ([a-z -]+)` \| .* \| \[", TABLE.read_text(), re.MULTILINE)
    assert sorted(named) == sorted(tree(root(), ()))


def root() -> click.Command:
    return typer.main.get_command(app)


def tree(command: click.Command, path: tuple[str, ...]) -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children is None:
        yield " ".join(path)
    for name, child in (children or {}).items():
        yield from tree(child, (*path, name))


def check_hvdtrain(words: tuple[str, ...]) -> None:
    """Command, options, config file and keys are real ones."""
    command, rest = root(), list(words[1:])
    while children := getattr(command, "commands", None):
        name = rest.pop(0) if rest and rest[0] in children else "run"  # as in `launch OPTIONS --`
        assert name in children, f"no such command: {' '.join(words)}"
        command = children[name]
    known = {option for parameter in command.params for option in parameter.opts}
    inner: list[str] | None = None
    if "--" in rest:
        inner = rest[rest.index("--") + 1 :]
        rest = rest[: rest.index("--")]
    for word in rest:
        if re.match("--?[a-z]", word):  # a number below 0 is a value
            assert word in known, f"no option {word}: {' '.join(words)}"
    configs = [word for word in rest if word.endswith(".yaml") and "configs/" in word]
    for name in configs:
        local = REPOSITORY / "configs" / Path(name).name
        assert local.exists() or local.name == "x.yaml", name
    settings = [word for word in rest if re.match(r"[a-z_]+(\.[a-z_0-9]+)*=", word)]
    targets = {"top1=0.75", "top5=0.93"}
    load_config(REPOSITORY / "configs/demo_digits.yaml", [s for s in settings if s not in targets])
    if inner:
        check_hvdtrain(("hvdtrain", *inner))


def check_python(words: tuple[str, ...]) -> None:
    """The script or module exists and has the options."""
    script = words[words.index("python" if "python" in words else "python3") + 1 :]
    name = script[1].replace(".", "/") + ".py" if script[0] == "-m" else script[0]
    if script[0] == "-m" and script[1] in sys.stdlib_module_names:
        return
    text = (REPOSITORY / name).read_text()
    for word in script[2 if script[0] == "-m" else 1 :]:
        if word.startswith("--") and word != "--":
            assert f'"{word}"' in text, f"{name} has no option {word}"


def test_options_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for command in ALL:
        if command.inner:
            check_hvdtrain(command.inner)
        elif "python" in command.words or "python3" in command.words:
            check_python(command.words)
        elif command.words[0] == "make":
            assert command.words[1] in targets, command.text


@pytest.fixture(scope="module")
def place(digits_root: Path, small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pages' commands work: configs, images, shards, runs."""
    here = tmp_path_factory.mktemp("reader")
    shutil.copytree(REPOSITORY / "configs", here / "configs")
    small = "phases: [{epochs: 1, image_size: 24, batch_per_worker: 2}]\n"
    (here / "configs/x.yaml").write_text(small)
    (here / "tuned.yaml").write_text(small + "data: {train_size: 100}\n")
    tutorial = (REPOSITORY / "docs/tutorial/first-model.md").read_text()
    (here / "my.yaml").write_text(
        re.findall(r"^```yaml\n(.*?)^```", tutorial, re.MULTILINE | re.DOTALL)[0]
    )
    for name in ("RUN_A", "RUN_B", "RUN_C", "runs/imagenet-20260101-120000"):
        restarted(here / name)
    (here / "DIR").symlink_to(digits_root)
    (here / "data").mkdir()
    shutil.copytree(digits_root, here / "data/mine", copy_function=os.link)
    (here / "data/imagenet").symlink_to(small_root)
    (here / "data/shards").mkdir()
    with tarfile.open(here / "data/shards/train-000.tar", "w") as shard:
        image = next((small_root / "train/3").iterdir())
        shard.add(image, "1.jpg")
        label = tarfile.TarInfo("1.cls")
        label.size = 1
        shard.addfile(label, io.BytesIO(b"0"))
    speed = {"image_size": 224, "batch": 32, "images_per_second": 400, "backward_s": 0.05}
    of = {"model": "resnet50", "precision": "fp16", "device": "cuda"}
    (here / "calibration.json").write_text(json.dumps({**of, "entries": [speed]}))
    return here


def placed(words: tuple[str, ...], here: Path) -> list[str]:
    """The words with what the reader has in place of the example's."""
    replaced = []
    for word in words:
        new = re.sub(r"^(?:(\w[\w.]*=))?/(data|fast|nfs|local)/", rf"\1{here}/\2/", word)
        new = new.replace(f"{here}/nfs/", f"{here}/fast/").replace("{000..099}", "{000..000}")
        new = re.sub(r"^(node\d|[ab]):\d,(node\d|[ab]):\d$", "localhost:2", new)
        replaced.append("configs/imagenet_resnet50_diux_4.yaml" if new == "CONFIG" else new)
    if replaced[:2] == ["hvdtrain", "launch"] and "--" in replaced and "--dry-run" not in replaced:
        replaced.insert(replaced.index("--"), "--dry-run")
    return replaced


def test_commands_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are cheap, page by page, in the order of the page."""
    monkeypatch.chdir(place)
    ran = 0
    for command in filter(run_here, ALL):
        words = placed(command.words, place)
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, (words, result.output, result.exception)
        ran += 1
    assert ran > 20
