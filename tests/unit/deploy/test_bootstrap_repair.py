"""`make setup` again: it does only what is missing, whatever state .venv is in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bootstrap
import progress


def fake_setup(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bootstrap.Setup, list[str]]:
    """A set-up whose steps only record that they ran; the step venv makes a folder."""
    setup = bootstrap.Setup(root, dict(os.environ))
    ran: list[str] = []

    def action(name: str) -> None:
        ran.append(name)
        if name == "venv":
            setup.venv.mkdir(exist_ok=True)
            (setup.venv / "whole").touch()

    setup.steps = [
        step._replace(action=lambda name=step.name: action(name)) for step in setup.steps
    ]
    monkeypatch.setattr(bootstrap, "venv_works", lambda venv: (venv / "whole").exists())
    return setup, ran


EVERY_STEP = ["venv", "tools", "torch", "packages", "horovod", "hvdtrain"]


def test_a_second_set_up_does_nothing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == EVERY_STEP
    again, ran = fake_setup(checkout, monkeypatch)
    again.locked()
    assert ran == []


@pytest.mark.parametrize(
    ("file", "redone"),
    [
        ("requirements/build.txt", EVERY_STEP[1:]),
        ("requirements/torch.txt", EVERY_STEP[2:]),
        ("requirements/dev.txt", EVERY_STEP[3:]),
        ("requirements/docs.txt", EVERY_STEP[3:]),
        ("requirements/runtime.txt", EVERY_STEP[3:]),
        ("requirements/dali-cuda130.txt", EVERY_STEP[3:]),
        ("requirements/horovod.txt", EVERY_STEP[4:]),
        ("third_party/horovod/0001-cxx-standard.patch", EVERY_STEP[4:]),
        ("setup.py", EVERY_STEP[5:]),
        ("pyproject.toml", EVERY_STEP[5:]),
        ("hvdtrain/__init__.py", EVERY_STEP[5:]),
    ],
)
def test_a_changed_input_redoes_its_step_and_those_after(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, file: str, redone: list[str]
) -> None:
    fake_setup(checkout, monkeypatch)[0].locked()
    (checkout / file).write_text((checkout / file).read_text() + "# changed\n")
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == redone


def test_a_failed_step_is_done_again_without_the_steps_before(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, ran = fake_setup(checkout, monkeypatch)

    def fail() -> None:
        raise progress.SetupError("no network")

    setup.steps[3] = setup.steps[3]._replace(action=fail)
    with pytest.raises(progress.SetupError, match="no network"):
        setup.locked()
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == EVERY_STEP[3:]


@pytest.mark.parametrize(("step", "redone"), [("torch", EVERY_STEP), ("horovod", EVERY_STEP[4:])])
def test_a_set_up_that_was_killed_is_repaired(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, step: str, redone: list[str]
) -> None:
    """Killed while pip wrote to .venv: all steps again. Killed while Horovod was built: only that."""
    setup, _ = fake_setup(checkout, monkeypatch)

    def die() -> None:
        raise KeyboardInterrupt

    index = EVERY_STEP.index(step)
    setup.steps[index] = setup.steps[index]._replace(action=die)
    with pytest.raises(KeyboardInterrupt):
        setup.locked()
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == redone


def test_choices_are_remembered(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVDTRAIN_TORCH", "torch==2.11.0")
    fake_setup(checkout, monkeypatch)[0].locked()
    monkeypatch.delenv("HVDTRAIN_TORCH")
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == []
    assert setup.env["HVDTRAIN_TORCH"] == "torch==2.11.0"
    monkeypatch.setenv("HVDTRAIN_TORCH", "torch==2.13.0")
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == EVERY_STEP[2:]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"done": 1}', "null"])
def test_damaged_stamps_count_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "setup-stamps.json").write_text(content)
    assert bootstrap.Stamps(tmp_path).done == {}
    assert bootstrap.Stamps(tmp_path).begun is None


def test_a_broken_or_copied_venv_is_made_again(checkout: Path) -> None:
    setup = bootstrap.Setup(checkout, dict(os.environ))
    setup.logs.mkdir()
    (setup.venv / "bin").mkdir(parents=True)
    setup.python.symlink_to("/nowhere/python3")
    assert not bootstrap.venv_works(setup.venv)
    setup.make_venv()
    assert bootstrap.venv_works(setup.venv)
    marker = setup.venv / "kept"
    marker.touch()
    setup.make_venv()  # it works and has no stamps, so the user made it: keep it
    assert marker.exists()
    copy = checkout / "copy"
    shutil.copytree(setup.venv, copy, symlinks=True)
    assert not bootstrap.venv_works(copy)
    shutil.rmtree(next(setup.venv.glob("lib/python*/site-packages/pip")))
    assert not bootstrap.venv_works(setup.venv)


def test_a_second_set_up_waits_for_the_first(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_setup(checkout, monkeypatch)[0].locked()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(checkout / ".setup" / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        waiting = subprocess.Popen(
            [sys.executable, str(checkout / "deploy" / "bootstrap.py")],
            env={**os.environ, "HVDTRAIN_CACHE": str(checkout / "cache")},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert waiting.stdout is not None
        assert waiting.stdout.readline().startswith("waiting until another set-up")
        waiting.kill()
        waiting.wait()
        waiting.stdout.close()
        holder.communicate("\n")
