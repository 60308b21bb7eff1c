"""`make wheels`: which packages are carried, and what is checked before the folder is replaced."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import pytest

import bootstrap
import wheels
from progress import SetupError


def distribution(site: Path, name: str, *requires: str) -> None:
    """An installed package of version 1.0 with nothing but its metadata."""
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")


def test_the_closure_follows_extras_and_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(
        tmp_path,
        "root_of_all",
        "base>=1",
        "not-installed",
        "ranks[fast]; extra == 'ranks'",
        "tests-only; extra == 'dev'",
        "other-platform; sys_platform == 'win32'",
    )
    distribution(tmp_path, "base", "root-of-all")  # a circle
    distribution(tmp_path, "ranks", "wire; extra == 'fast'")
    for name in ("wire", "tests_only", "other_platform"):
        distribution(tmp_path, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"root-of-all", "base", "ranks", "wire"}
    assert wheels.installed_closure("Root.of-all[ranks]") == dict.fromkeys(names, "1.0")


def test_the_closure_of_this_environment_can_run_ranks() -> None:
    closure = wheels.installed_closure("hvdtrain[horovod]", *wheels.DALI)
    assert {"torch", "numpy", "setuptools"} <= set(closure)
    assert closure["torch"] == version("torch")
    assert len(set(wheels.DALI) & set(closure)) == 1
    assert not {"pytest", "ruff"} & set(closure)


def test_missing_and_other_wheels_are_named(tmp_path: Path) -> None:
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    (tmp_path / "typing_extensions-4.16.0-py3-none-any.whl").touch()
    wheels.check_complete(tmp_path, {"torch": "2.13.0+cpu", "typing-extensions": "4.16.0"})
    expected = {"torch": "2.11.0", "typing-extensions": "4.16.0", "mpi4py": "4.1.2"}
    message = r"missing mpi4py==4\.1\.2, torch==2\.11\.0, unexpected torch==2\.13\.0\+cpu:"
    with pytest.raises(SetupError, match=message):
        wheels.check_complete(tmp_path, expected)


def fake_pip(setup: bootstrap.Setup, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """pip and Horovod's build write empty wheels; returns what pip was asked for."""
    asked: list[list[str]] = []

    def run(what: str, command: list[str], log: str) -> None:
        folder = Path(command[command.index("--wheel-dir") + 1])
        words = command[command.index("--wheel-dir") + 2 :]
        asked.append(words)
        for name, _, release in (word.partition("==") for word in words if "==" in word):
            (folder / f"{name.replace('-', '_')}-{release}-py3-none-any.whl").touch()
        if str(setup.root) in words:
            (folder / f"hvdtrain-{version('hvdtrain')}-py3-none-any.whl").touch()

    def horovod_wheel(*_: object) -> Path:
        wheel = setup.root / f"horovod-{version('horovod')}-cp311-cp311-linux_x86_64.whl"
        wheel.touch()
        return wheel

    monkeypatch.setattr(setup, "run", run)
    monkeypatch.setattr(setup, "asked", dict)
    monkeypatch.setattr(wheels, "get_wheel", horovod_wheel)
    return asked


def test_the_folder_has_one_wheel_of_every_package(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = bootstrap.Setup(checkout, dict(os.environ, HVDTRAIN_TORCH=""))
    target = checkout / "dist" / "wheels"
    stale = checkout / "build" / "lib" / "removed.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    asked = fake_pip(setup, monkeypatch)
    wheels.fill(setup, target)
    closure = wheels.installed_closure("hvdtrain[horovod]", *wheels.DALI)
    assert len(list(target.iterdir())) == len(closure)
    pins = {f"{name}=={release}" for name, release in closure.items()}
    assert pins - set(asked[-1]) == {f"{name}=={closure[name]}" for name in ("hvdtrain", "horovod")}
    assert not stale.exists()


def test_torch_comes_from_where_set_up_took_it(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = f"torch=={version('torch')} --index-url https://example.org/simple"
    setup = bootstrap.Setup(checkout, dict(os.environ, HVDTRAIN_TORCH=choice))
    asked = fake_pip(setup, monkeypatch)
    wheels.fill(setup, checkout / "wheels")
    assert asked[1] == choice.split()
    assert not [word for word in asked[2] if word.startswith("torch==")]


def test_a_failure_keeps_the_old_folder(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = bootstrap.Setup(checkout, dict(os.environ, HVDTRAIN_TORCH="torch==0.1"))
    target = checkout / "dist" / "wheels"
    target.mkdir(parents=True)
    (target / "old.whl").touch()
    fake_pip(setup, monkeypatch)
    with pytest.raises(SetupError, match=r"missing torch==.*, unexpected torch==0\.1"):
        wheels.fill(setup, target)
    assert [file.name for file in target.parent.rglob("*")] == ["wheels", "old.whl"]
