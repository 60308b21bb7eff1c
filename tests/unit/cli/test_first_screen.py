"""What a user sees who types a command without arguments, or with a wrong option."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain import __version__
from hvdtrain.cli.main import main


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hvdtrain", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(
    "group",
    [(), ("launch",), ("config",), ("data",), ("ckpt",), ("tune",), ("study",), ("scaling",)],
)
def test_a_command_without_arguments_shows_its_help(
    group: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, *group) == 2
    shown = capsys.readouterr().err
    usage = shown.partition("\n")[0]
    assert usage.startswith("Usage: ")
    assert usage.endswith(" ".join([*group, "[OPTIONS] COMMAND [ARGS]..."]))
    assert "hvdtrain: error" not in shown
    assert "Commands:" in shown


def test_a_wrong_option_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "plan", "--wrld-size", "2") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("hvdtrain: error: ")
    assert shown.endswith("did you mean --world-size?\n")
    assert shown.count("\n") == 1


@pytest.mark.parametrize("words", [("-m", "hvdtrain", "--version"), ("-c", "VERSION")])
def test_the_folder_above_a_clone_does_not_shadow_the_package(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "hvdtrain").symlink_to(Path(__file__).resolve().parents[3])
    code = "import hvdtrain; print('hvdtrain', hvdtrain.__version__)"
    words = tuple(code if word == "VERSION" else word for word in words)
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"hvdtrain {__version__}\n"), done.stderr
