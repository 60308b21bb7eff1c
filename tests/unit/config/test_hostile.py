"""Configs and overrides that are hostile, or typed as other tools want them: one line, at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvdtrain.config.load import load_config, parse_config
from hvdtrain.config.yaml_source import MAX_DEPTH
from hvdtrain.errors import ConfigError

MINIMAL = "name: x\nphases: [{epochs: 1}]\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)


def fault(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f.yaml")
    [line] = caught.value.problems
    assert "\n" not in line
    assert len(line) < 300
    return line


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(MINIMAL)
    return path


def override_fault(config: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(config, list(overrides))
    assert len(caught.value.problems) == 1
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 100,000 values: do aliases multiply?"),
        ("a: " + "[" * 600 + "]" * 600, f"more than {MAX_DEPTH} levels"),
        ("a: " + "{b: " * 600 + "}" * 600, f"more than {MAX_DEPTH} levels"),
        ("".join("  " * k + "- \n" for k in range(400)), "not valid YAML"),
        (MINIMAL + "seed: " + "9" * 5000, "f.yaml:3:7: a number of 5000 digits"),
        ("x" * (2**20 + 1), "longer than 1 MiB"),
        (MINIMAL + "\x1b[31mred: 1", "not valid YAML"),
        (MINIMAL + '"\\e[31mred": 1', r"\x1b[31mred: unknown key"),
        ("phases: [{epochs: 10000000}]", "less than or equal to 100000"),
        (f"phases: [{', '.join(['{epochs: 100000}'] * 2)}]", "200,000 epochs in all"),
        (MINIMAL + "data: {mean: [123.7, 116.3, 103.5]}", "mean: 123.7 is above 1"),
        (MINIMAL + "data: {std: [58.4, 57.1, 57.4]}", "std: 58.4 is above 1"),
        (MINIMAL + "output: ''", "output: string should have at least 1 character"),
        (MINIMAL.replace("x", "2024", 1), 'expected text, found 2024: write it in quotes, "2024"'),
    ],
)
def test_bounded_and_one_line(text: str, message: str) -> None:
    assert message in fault(text)


def test_an_alias_is_not_shared_by_what_it_stands_for(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("phases: [&p {epochs: 1}, *p]\n")
    cfg = load_config(path, ["phases.0.epochs=3"])
    assert [phase.epochs for phase in cfg.phases] == [3, 1]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path, message in (
        (pipe, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "s a "),
        (tmp_path / "none.yaml", "cannot read the config: No such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(path)


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(MINIMAL, encoding="utf-8-sig")
    assert load_config(path).name == "x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=0.1", "lr: is a section, found 0.1; did you mean lr.base=0.1?"),
        ("model=resnet18", "did you mean model.name=resnet18?"),
        ("epochs=5", "did you mean phases.0.epochs?"),
        ("batch_size=64", "did you mean phases.0.batch_per_worker?"),
        ("weight_decay=0.1", "did you mean optimizer.weight_decay?"),
        ("decode_thread=2", "did you mean data.decode_threads?"),
        ("phases[0].epochs=3", "an item of a list is written phases.0.epochs=3"),
        ("data.rand_augment=[2,", "in quotes: 'KEY=[2, 9]'"),
        ("a." * 50_000 + "a=1", "a key of 50001 parts"),
        ("phases." + "9" * 5000 + ".epochs=1", "expected a number from 0 to 0"),
        ("phases.²=1", "expected a number from 0 to 0"),
        ("data.train=", "at least 1 character"),
        ("train.accumulate=" + "9" * 50, "a number of 50 digits"),
    ],
)
def test_typed_wrong(config: Path, override: str, message: str) -> None:
    assert message in override_fault(config, override)


@pytest.mark.parametrize("value", ["set #2", "2024", "no", "a: b", "[x]", "1e3", "{a}", "*x", "%"])
def test_text_is_taken_as_it_is_typed(config: Path, value: str) -> None:
    assert load_config(config, [f"data.train={value}"]).data.train == value


def test_text_in_quotes_and_no_text(config: Path) -> None:
    assert load_config(config, ["data.train='a b'"]).data.train == "a b"
    assert load_config(config, ["data.train=x", "data.train=null"]).data.train is None


def test_a_tilde_is_the_home_folder(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    cfg = load_config(config, ["data.train=~/x", "output=~/runs", "model.weights=~/w.pt"])
    assert (cfg.data.train, cfg.output) == ("/home/me/x", "/home/me/runs")
    assert cfg.model.weights == "/home/me/w.pt"


@pytest.mark.parametrize("name", ['"\\0"', "a" * 5000, "c0.yaml"])
def test_extends_that_cannot_be_followed_is_one_line(tmp_path: Path, name: str) -> None:
    for k in range(50):
        (tmp_path / f"c{k}.yaml").write_text(f"extends: c{k + 1}.yaml\n")
    (tmp_path / "a.yaml").write_text(f"extends: {name}\n")
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "a.yaml")
    assert "extends: " in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
