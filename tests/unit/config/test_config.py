"""The YAML reader and the schema: what is accepted, and the messages for faulty files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain import config
from hvdtrain.config import schema
from hvdtrain.config.load import load_config, parse_config
from hvdtrain.config.reference import reference
from hvdtrain.config.schema import Config
from hvdtrain.config.yaml_source import parse_yaml
from hvdtrain.errors import ConfigError

MINIMAL = "phases: [{epochs: 1}]\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5E2", 500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("1_000", 1000),
        ("-3", -3),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("''", ""),
        ("'1e-3'", "1e-3"),
        ("2026-11-20", "2026-11-20"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("-.inf", float("-inf")),
    ],
)
def test_plain_words(text: str, value: object) -> None:
    parsed = parse_yaml(f"key: {text}", "f.yaml").data["key"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: {base: 1}\nlr: {base: 2}", "f.yaml:2:1: lr: repeated (first on line 1)"),
        ("a: !!python/name:os.system x", "f.yaml:1:4: tags such as tag:yaml.org,2002:python"),
        ("a: [1", "f.yaml:1:6: not valid YAML"),
        ("- 1", "f.yaml:1:1: expected `key: value` pairs"),
        ("a: &x [*x]", "f.yaml:1:4: an anchor must not contain itself"),
        ("a: *x", "f.yaml:1:4: not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "f.yaml:2:1: not valid YAML"),
        ("a: \x07", "f.yaml: not valid YAML"),
    ],
)
def test_faulty_yaml(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_are_reported_together_with_their_place() -> None:
    text = (
        "nam: x\nphases:\n - epochs: 3\n   lr: on\n   imag_size: 3\n"
        "lr: {base: -1, schedule: spiral}\ndata: 3\ntrain: {accumulate: 1.5}\n"
    )
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f.yaml")
    problems = sorted(caught.value.problems)
    assert [problem.split(": ")[0:2] for problem in problems] == [
        ["f.yaml:1:1", "nam"],
        ["f.yaml:4:4", "phases.0.lr"],
        ["f.yaml:5:4", "phases.0.imag_size"],
        ["f.yaml:6:16", "lr.schedule"],
        ["f.yaml:6:6", "lr.base"],
        ["f.yaml:7:1", "data"],
        ["f.yaml:8:9", "train.accumulate"],
    ]
    assert "did you mean name?" in problems[0]
    assert "did you mean image_size?" in problems[2]
    assert "found 1.5" in problems[6]


def test_nothing_is_converted_silently() -> None:
    for text in ("name: 3", "seed: '3'", "data: {flip: 1}", "data: {flip: 'true'}"):
        with pytest.raises(ConfigError):
            parse_config(MINIMAL + text)


def test_missing_keys_and_keys_unlike_any_known() -> None:
    with pytest.raises(ConfigError, match=r"phases: required"):
        parse_config("name: x")
    with pytest.raises(ConfigError, match=r"known here: name, seed, output"):
        parse_config(MINIMAL + "qqqqqq: 1")


@pytest.mark.parametrize(
    "lr",
    [
        "{schedule: piecewise}",
        "{schedule: piecewise, points: [[0, 0], [2, 1], [9, 0]], warmup: gradual}",
        "{schedule: piecewise, points: [[0, 1], [0, 2]]}",
        "{schedule: piecewise, points: [[2, 1], [1, 2]]}",
        "{schedule: piecewise, points: [[1, 2, 3]]}",
        "{milestones: [30, 20]}",
        "{base: .inf}",
        "{base: .nan}",
    ],
)
def test_invalid_learning_rates(lr: str) -> None:
    with pytest.raises(ConfigError, match=r"config:2:\d+: lr"):
        parse_config(MINIMAL + f"lr: {lr}")


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("phases:\n  - {epochs: 1}\n  - {epochs: 2, image_size: 64}\n")
    cfg = load_config(
        path, ["phases.1.epochs=7", "lr.base=1e-2", "data.train=/x=y", "phases.0.lr=[1, 2]"]
    )
    assert (cfg.phases[1].epochs, cfg.phases[1].image_size) == (7, 64)
    assert cfg.lr.base == 0.01
    assert cfg.data.train == "/x=y"
    assert cfg.phases[0].lr == [1, 2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr.bas=1", "command line: lr.bas=1: lr.bas: unknown key; did you mean base?"),
        ("phases.2.epochs=1", "command line: phases.2.epochs=1: 2: expected a number from 0 to 0"),
        ("phases.epochs=1", "epochs: expected a number from 0 to 0"),
        ("lr", "command line: lr: expected key=value"),
        ("=3", "expected key=value"),
        ("name.x=3", "name has no keys"),
        ("seed=x", "command line: seed=x: seed: input should be a valid integer, found 'x'"),
        ("name=", "command line: name=: name: string should match pattern"),
        ("lr.base=[", "command line: lr.base=[: not valid YAML"),
        ("lr.base=[", "quotes: 'KEY=[2, 9]'"),
        ("data.flip=x", "data.flip: input should be 'alternating' or a valid boolean, found 'x'"),
        (
            "train.loss_scale=-1",
            "should be 'dynamic' or greater than or equal to 0.000001, found -1",
        ),
    ],
)
def test_faulty_overrides(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: x\nphases: [{epochs: 1}]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert message in str(caught.value)


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "lr: {base: 0.5, gamma: 0.2}\nphases: [{epochs: 1}, {epochs: 2}]\n"
    )
    (tmp_path / "sub").mkdir()
    child = tmp_path / "sub/child.yaml"
    child.write_text("extends: ../base.yaml\nlr: {base: 0.7}\nphases: [{epochs: 9}]\n")
    cfg = load_config(child)
    assert (cfg.lr.base, cfg.lr.gamma) == (0.7, 0.2)
    assert [phase.epochs for phase in cfg.phases] == [9]


def test_a_fault_in_an_extended_file_is_reported_there(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("lr: {gama: 0.2}\n")
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nphases: [{epochs: 9}]\n")
    with pytest.raises(ConfigError, match=r"base\.yaml:1:6: lr\.gama: unknown key"):
        load_config(child)


def test_extends_that_cannot_work(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("extends: b.yaml\n")
    b.write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(a)
    b.write_text("extends: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"b\.yaml:1:1: extends: no such file"):
        load_config(a)
    b.write_text("extends: [1]\n")
    with pytest.raises(ConfigError, match="expected the name of one YAML file"):
        load_config(a)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(tmp_path / "latin.yaml")


def test_every_field_is_described() -> None:
    schema = Config.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    undescribed = [
        f"{section['title']}.{name}"
        for section in sections
        for name, field in section["properties"].items()
        if "description" not in field and "$ref" not in field
    ]
    assert undescribed == []


def test_shipped_configs_are_valid() -> None:
    configs = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
    assert configs
    for path in configs:
        load_config(path)


def test_the_reference_in_docs_is_generated_from_the_schema() -> None:
    written = (Path(__file__).parents[3] / "docs/config.md").read_text()
    assert written == reference().rstrip() + "\n", "run: hvdtrain config reference > docs/config.md"


def test_columns_of_lists_are_text_as_it_is_typed(tmp_path):
    (tmp_path / "c.yaml").write_text("phases: [{epochs: 1, image_size: 32, batch_per_worker: 4}]\n")
    words = ["data.columns.path=photo, 2", "data.columns.label=2024"]
    columns = load_config(tmp_path / "c.yaml", words).data.columns
    assert (columns.path, columns.label) == ("photo, 2", "2024")
    assert load_config(tmp_path / "c.yaml").data.columns.path is None
    for text, message in (
        ("data.columns={path: photo}", None),
        ("data.columns.lable=x", "data.columns.lable: unknown key; did you mean label?"),
        ("data.columns=photo", "data.columns: is a section, found"),
        ("data.columns.path=", "data.columns.path: "),
    ):
        if message is None:
            assert load_config(tmp_path / "c.yaml", [text]).data.columns.path == "photo"
        else:
            with pytest.raises(ConfigError) as error:
                load_config(tmp_path / "c.yaml", [text])
            assert message in str(error.value)


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("0.2", 0.2),
        (".25", 0.25),
        ("2e-1", 0.2),
        ("./0.2", "./0.2"),
        ("'0.2'", "0.2"),
        ("0.2x", "0.2x"),
        ("null", None),
        ("a: b", "a: b"),
    ],
)
def test_validation_images_are_a_path_or_a_share(typed: str, value: object) -> None:
    cfg = parse_config("phases: [{epochs: 1}]", overrides=[f"data.val={typed}"])
    assert cfg.data.val == value
    assert parse_config(f"{{phases: [{{epochs: 1}}], data: {{val: {json.dumps(value)}}}}}") == cfg


@pytest.mark.parametrize("share", ["0", "1", "1.5", "-0.2", "20"])
def test_a_share_of_all_or_nothing_is_refused(share: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config("phases: [{epochs: 1}]", overrides=[f"data.val={share}"])
    number = float(share)
    assert str(error.value) == (
        f"command line: data.val={share}: data.val: expected a path, or the share of data.train to "
        f"hold out, above 0 and below 1, found {number}; a folder of that name is ./{share}"
    )


def test_the_sections_of_the_schema_can_be_imported_from_the_package() -> None:
    assert {*config.__all__} == {*schema.__all__} - {"GROUP_MB"}
    for name in config.__all__:
        assert getattr(config, name) is getattr(schema, name)
    with pytest.raises(ImportError, match="Modle"):
        exec("from hvdtrain.config import Modle")
    code = "import sys, hvdtrain.config.data; assert 'hvdtrain.config.schema' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stretched_evaluation_of_rectangles_is_refused() -> None:
    text = "data: {val_resize: stretch}\nphases: [{epochs: 1, rect_val: true}]"
    with pytest.raises(ConfigError, match=r"phases\.0\.rect_val: true keeps the aspect"):
        parse_config(text)
