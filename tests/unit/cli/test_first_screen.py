"""What somebody sees who types a command without its arguments, or with a wrong one."""

from __future__ import annotations

import sys

import pytest

from hvdtrain.cli.main import main


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hvdtrain", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(
    "group", [(), ("launch",), ("config",), ("data",), ("tune",), ("scaling",)]
)
def test_a_command_alone_shows_its_help(
    group: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, *group) == 2
    told = capsys.readouterr().err
    usage = told.partition("\n")[0]
    assert usage.startswith("Usage: ")
    assert usage.endswith(" ".join([*group, "[OPTIONS] COMMAND [ARGS]..."]))
    assert "hvdtrain: error" not in told
    assert "Commands:" in told


def test_a_wrong_option_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "plan", "--wrld-size", "2") == 2
    told = capsys.readouterr().err
    assert told.startswith("hvdtrain: error: ")
    assert told.endswith("; see hvdtrain --help\n")
    assert told.count("\n") == 1
