"""Command lines that are typed wrong: one line with what was probably meant, and exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hvdtrain.cli import job, main
from hvdtrain.cli.misuse import config_and_settings
from hvdtrain.errors import ConfigError

WRONG = [
    (
        "train a.yaml --epochs 5",
        "--epochs: no such option; settings are key=value: phases.0.epochs=5",
    ),
    ("train a.yaml --epochs=5", "settings are key=value: phases.0.epochs=5"),
    ("train --epochs 5 a.yaml", "settings are key=value: phases.0.epochs=5"),
    ("plan a.yaml --lr 0.1", "settings are key=value: lr.base=0.1"),
    ("plan a.yaml --batch-size 64", "settings are key=value: phases.0.batch_per_worker=64"),
    ("train a.yaml --lr.base 0.1", "settings are key=value: lr.base=0.1"),
    ("train a.yaml --weight-decay", "settings are key=value: optimizer.weight_decay=VALUE"),
    ("train a.yaml --xyzzy 1", "--xyzzy: no such option; settings are key=value, see"),
    ("plan a.yaml --world_size 2", "did you mean --world-size?"),
    ("plan a.yaml --wrld-size 2", "did you mean --world-size?"),
    ("plan a.yaml -5", "-5: no such option"),
    ("plan a.yaml --world-size -1", "greater than or equal to 1; see hvdtrain plan --help"),
    ("plan a.yaml --world-size two", "valid integer"),
    ("data pack a b --short-side 24px", "24px: expected pixels without a unit"),
    ("train a.yaml --resume yes", "--resume yes: expected auto, never or the folder of a run"),
    ("train a.yaml --resume True", "--resume True: expected auto, never or the folder of a run"),
    ("train a.yaml --resume", "requires an argument"),
    ("train", "CONFIG is missing"),
    ("train lr.base=1", "CONFIG is missing"),
    ("train --resume auto", "CONFIG is missing"),
    ("plan", "CONFIG is missing; see hvdtrain plan --help"),
    ("eval", "RUN is missing; see hvdtrain eval --help"),
    ("plan a.yaml b.yaml", "b.yaml: a second config; a command takes one"),
    ("plan a.yaml lr.base=1 a.yaml", "a.yaml: a second config"),
    ("plan lr.base=1 a.yaml", "a.yaml: a second config|lr.base=1"),
    ("plan a.yaml lr.base = 0.1", "expected key=value|without blanks"),
    ("plan a.yaml lr.base= 0.1", "without blanks"),
    ("plan a.yaml lr.base=-1", "lr.base: input should be greater than 0"),
    ("plan none.yaml", "none.yaml: cannot read the config: No such file"),
    ("tarin a.yaml", "No such command 'tarin'"),
    ("data pakc", "No such command 'pakc'"),
    ("config shwo a.yaml", "No such command 'shwo'"),
    ("launch --resume auto train a.yaml", "the command of the ranks comes after two dashes"),
    ("launch slurm a.yaml --min-node 1", "--min-node: no such option; did you mean --min-nodes?"),
    ("launch train a.yaml --resume auto", "the command of the ranks comes after two dashes"),
    ("launch -np 2 train a.yaml", "-np: not an option of launch"),
    ("launch --hosts localhost:2 -- a.yaml", "expected a command such as train, found a.yaml"),
    ("launch --hosts localhost:2 --", "is missing; see hvdtrain launch run --help"),
]


def typed(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hvdtrain", *line.split()])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("name: x\nphases: [{epochs: 1}]\n")
    return tmp_path


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line for line, _ in WRONG])
def test_one_line_and_exit_code_2(
    line: str,
    message: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert typed(monkeypatch, line) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    [text] = shown.err.splitlines()
    assert text.startswith("hvdtrain: error: ")
    assert any(part in text for part in message.split("|")), text
    assert ".;" not in text
    assert len(text) < 300


def test_a_run_stands_for_its_config(here: Path) -> None:
    config = str(Path("run/config.yaml"))
    assert config_and_settings(None, None, "run") == (config, [])
    assert config_and_settings("lr.base=1", ["seed=2"], "run") == (config, ["lr.base=1", "seed=2"])
    assert config_and_settings("a.yaml", ["seed=2"], "run") == ("a.yaml", ["seed=2"])
    Path("yes").mkdir()
    assert config_and_settings("a.yaml", None, "yes") == ("a.yaml", [])
    with pytest.raises(ConfigError, match="CONFIG is missing"):
        config_and_settings(None, None, "auto")


def test_a_wrong_config_is_told_before_torch_is_imported(here: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"), job.job("none.yaml", None):
        raise AssertionError


def test_ranks_above_0_wait_for_rank_0s_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return False

    monkeypatch.setattr(job, "wait_for_notice", wait)
    size = {"OMPI_COMM_WORLD_SIZE": "2"}
    for env, waited, line in (
        ({}, [], "a\x1b[31m"),
        ({**size, "OMPI_COMM_WORLD_RANK": "0"}, [], "a\x1b[31m"),
        ({**size, "OMPI_COMM_WORLD_RANK": "1"}, [job.LATER_S], "rank 1: a\x1b[31m"),
        ({"SLURM_PROCID": "1"}, [], "a\x1b[31m"),
    ):
        waits.clear()
        job.print_early_error("a\x1b[31m", env)
        assert waits == waited
        shown = line.replace("\x1b", "\\x1b")
        assert capsys.readouterr().err == f"hvdtrain: error: {shown}\n"
