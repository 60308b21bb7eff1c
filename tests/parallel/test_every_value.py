"""Every field of the config trains two steps at each of its values, or ends with one line.

The values come from the schema (`schema_values.py`): all of an enumeration, both ends of a number,
null and a value, both truths; text and lists from a table. What they need, and what is refused, is in
`schema_cases.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import typer.main
from PIL import Image

from hvdtrain import train
from hvdtrain.cli import main as cli
from hvdtrain.engine import compiling
from hvdtrain.models import MODELS
from tests.launch import REPOSITORY, mpirun
from tests.launch import run as launch
from tests.parallel.schema_cases import LIBRARIES, ON_TWO, REFUSED, WITH
from tests.parallel.schema_values import ENDS, MORE, fields, override, values

WORKER = REPOSITORY / "tests/parallel/every_value_worker.py"
CONFIG = """
name: every
data: {train: train, val: val, augment: none, flip: false, decode_threads: 1}
model: {name: resnet8_cifar}
lr: {base: 0.01, base_batch: 4, warmup: none, schedule: constant}
phases:
  - {epochs: 1, image_size: 16, batch_per_worker: 4}
train: {log_every: 1}
metrics: {enabled: false}
"""
CASES = [
    (field, override(field, value))
    for field, node in fields().items()
    for value in values(field, node)
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Path:
    """Two classes of four images."""
    root = tmp_path_factory.mktemp("every")
    for part in ("train", "val"):
        for label in range(2):
            (root / part / str(label)).mkdir(parents=True)
            for k in range(4):
                pixels = np.random.default_rng([label, k]).integers(0, 255, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / str(label) / f"{k}.png")
    rows = [(f"train/{k % 2}/{k // 2}.png", str(k % 2)) for k in range(8)]
    lines = [f"{path},{path},{label},{label}\n" for path, label in rows]
    (root / "list.csv").write_text("".join(["photo,path,label,kind\n", *lines]))
    (root / "every.yaml").write_text(CONFIG)
    model = MODELS["resnet8_cifar"](num_classes=2)
    safetensors.torch.save_file(model.state_dict(), root / "weights.safetensors")
    (root / "token").write_text("a-secret-of-some-length\n")
    (root / "token").chmod(0o600)
    for folder in ("served", "texts"):
        (root / folder).mkdir()
    for name in ("ca.pem", "server.pem", "server.key"):
        shutil.copy(certificates / name, root)
    entry = {"image_size": 16, "batch": 4, "trained": 0, "accumulate": 1}
    entry |= {"images_per_second": 100.0, "backward_s": 0.01}
    about = {"model": "resnet8_cifar", "precision": "fp32", "device": "cpu"}
    (root / "calibration.json").write_text(json.dumps({**about, "entries": [entry]}))
    return root


@pytest.fixture(scope="module", autouse=True)
def _one_core() -> Iterator[None]:
    """Compute and decoding threads would spin against each other."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture(scope="module", autouse=True)
def _one_parser() -> Iterator[None]:
    """Making the parser of the command line takes as long as some of the trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "app", typer.main.get_command(cli.app))
        yield


def run(settings: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and stderr of `hvdtrain train` in this process."""
    sys.argv = ["hvdtrain", "train", "every.yaml", *settings]
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0), capsys.readouterr().err


def refusal(setting: str, more: dict[str, tuple[int, str]]) -> tuple[int, str]:
    """Expected exit code and a part of the line; 0 for a value that trains."""
    library, code = LIBRARIES.get(setting, ("", 0))
    if library and importlib.util.find_spec(library) is None:
        return (code, f"pip install {library}")
    return {**REFUSED, **more}.get(setting, (0, ""))


def test_every_field_has_values() -> None:
    known = fields()
    assert [field for field, node in known.items() if len(values(field, node)) < 2] == []
    assert {*MORE, *ENDS} - set(known) == set()
    settings = {setting for _, setting in CASES}
    installed = {one for one, (name, _) in LIBRARIES.items() if importlib.util.find_spec(name)}
    assert {*REFUSED, *LIBRARIES} - settings <= installed
    assert set(WITH) - settings - set(known) == set()


@pytest.mark.parametrize(("field", "setting"), CASES, ids=[setting for _, setting in CASES])
def test_a_value_trains_or_is_refused_in_one_line(
    field: str,
    setting: str,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(images)
    monkeypatch.setattr(train, "write_page", lambda run: None)  # matplotlib takes seconds
    monkeypatch.setattr(compiling, "BACKEND", "eager")  # a C++ compiler even more
    monkeypatch.setattr(sys, "argv", sys.argv)
    extra = WITH.get(field, []) + WITH.get(setting, [])
    code, err = run([*extra, setting], capsys)
    shutil.rmtree("runs", ignore_errors=True)
    expected, line = refusal(setting, {})
    assert code == expected, err
    lines = [text for text in err.splitlines() if text.startswith("hvdtrain: error: ")]
    assert len(lines) == (1 if code else 0), err
    assert re.search(line, err)


TWO_RANKS = [
    (field, setting)
    for field, setting in CASES
    if field.startswith(
        (
            "comm.",
            "metrics.",
            "checkpoint.every",
            "checkpoint.over",
            "checkpoint.mirror",
            "checkpoint.keep_start",
            "optimizer.share_work",
            "train.noise",
            "train.patience",
            "train.stop_at",
            "train.acc",
            "train.on_",
            "train.compute",
            "train.compare",
            "train.roll",
        )
    )
    or field
    in ("data.cache", "data.shuffle", "phases.0.rect_val", "train.precision", "model.batch_norm")
]


def test_values_that_concern_several_ranks_on_two(images: Path) -> None:
    lines = [
        [*WITH.get(field, []), *WITH.get(setting, []), setting] for field, setting in TWO_RANKS
    ]
    half = "phases.0.batch_per_worker=2"
    (images / "settings.json").write_text(json.dumps([[half, *line] for line in lines]))
    done = launch(mpirun(2, sys.executable, WORKER, "settings.json"), cwd=images)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads((images / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    for (_, setting), one, two in zip(TWO_RANKS, *results, strict=True):
        code, line = refusal(setting, ON_TWO)
        assert one[0] == two[0] == code, (setting, one, two)
        assert re.search(line, one[1]), (setting, one)
