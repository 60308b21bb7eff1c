"""Every field of the config trains two steps at each of its values, or ends with one line.

The values come from the schema (`schema_values.py`): all of an enumeration, both ends of a number,
null and a value, both truths; text and lists from a table.
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
ONE_CYCLE = ["lr.schedule=onecycle"]
CYCLICAL = ["lr.schedule=cyclical", "lr.cycle_epochs=1"]
CROPPED = ["data.augment=random_resized_crop"]
PADDED = ["data.augment=pad_crop"]
SERVED = ["metrics.enabled=true"]
HTTPS = [*SERVED, "metrics.tls_cert=server.pem", "metrics.tls_key=server.key"]
LISTED = ["data.train=list.csv"]
TAUGHT = ["train.teacher={weights: weights.safetensors, model: resnet8_cifar}"]
MUON = ["optimizer.name=muon"]
SLOW = ["optimizer.lookahead.every=1"]
WITH: dict[str, list[str]] = {
    "data.columns.path": LISTED,
    "data.columns.label": LISTED,
    "data.crop_aspect": CROPPED,
    "data.crop_padding": PADDED,
    "data.padding_mode": PADDED,
    "data.rand_augment_policy": ["data.rand_augment=[4, 5]"],
    "data.max_bad_ratio": ["data.on_bad=mask"],
    "data.shuffle_window": ["data.shuffle=shards"],
    "model.stochastic_depth_rescale": ["model.stochastic_depth=0.1"],
    "model.width": ["model.name=wrn16"],
    "optimizer.betas": ["optimizer.name=adamw"],
    "optimizer.eps": ["optimizer.name=lamb"],
    "optimizer.trust_coefficient": ["optimizer.name=lars"],
    "optimizer.lars_rate": ["optimizer.name=lars"],
    "optimizer.newton_schulz_steps": MUON,
    "optimizer.normalize_filters": MUON,
    "optimizer.other_rate": MUON,
    "optimizer.other_momentum": MUON,
    "optimizer.share_work": MUON,
    "optimizer.lookahead.share": SLOW,
    "optimizer.lookahead.power": [*SLOW, "optimizer.lookahead.share=[1.0, 0.2]"],
    "optimizer.agc_classifier_bias": ["optimizer.agc=0.01"],
    "lr.warmup_epochs": ["lr.warmup=gradual"],
    "lr.warmup_start": ["lr.warmup=gradual"],
    "lr.schedule=piecewise": ["lr.points=[[0, 1], [1, 0]]"],
    "lr.schedule=cyclical": ["lr.cycle_epochs=1"],
    "lr.update": ["lr.warmup=gradual", "lr.warmup_epochs=2", "lr.schedule=cosine"],
    "lr.milestones": ["lr.schedule=step"],
    "lr.gamma": ["lr.schedule=step", "lr.milestones=[0]"],
    "lr.power": ["lr.schedule=polynomial"],
    "lr.points": ["lr.schedule=piecewise"],
    "lr.pct_start": ONE_CYCLE,
    "lr.div_factor": ONE_CYCLE,
    "lr.final_div_factor": ONE_CYCLE,
    "lr.anneal": ONE_CYCLE,
    "lr.cycle_momentum": ONE_CYCLE,
    "lr.pct_final": ["lr.schedule=onecycle_fastai"],
    "lr.cycle_epochs": CYCLICAL,
    "lr.cycle_mode": CYCLICAL,
    "phases.0.size_multiple": ["phases.0.image_size=[16, 40]", "phases.0.epochs=3"],
    "phases.0.min_crop_area": CROPPED,
    "phases.0.crop_aspect": CROPPED,
    "phases.0.unfreeze": ["model.freeze=[stem]"],
    "train.loss_scale": ["train.precision=fp16"],
    "train.target_threshold": ["train.loss=binary_cross_entropy", "train.mixup=0.2"],
    "train.teacher.weights": TAUGHT,
    "train.teacher.weights=null": ["train.teacher.model=null"],
    "train.teacher.model": TAUGHT,
    "train.teacher.share": TAUGHT,
    "train.teacher.temperature": TAUGHT,
    "train.mix_share=batch": ["train.mixup=0.2"],
    "train.mix_partner=random": ["train.cutmix=1.0"],
    "train.mix_partner=doubled": ["train.mixup=0.2", "train.accumulate=2"],
    "train.noise_scale_every": ["train.accumulate=2"],
    "comm.compression=auto": ["comm.tune=measure"],
    "metrics.bind": SERVED,
    "metrics.bind=0.0.0.0": ["metrics.insecure=true"],
    "metrics.bind=192.0.2.1": ["metrics.insecure=true"],
    "metrics.port": SERVED,
    "metrics.insecure": [*SERVED, "metrics.bind=0.0.0.0"],
    "metrics.insecure=false": ["metrics.token_file=token"],
    "metrics.token_file": SERVED,
    "metrics.tls_cert": HTTPS,
    "metrics.tls_key": HTTPS,
    "metrics.tls_client_ca": HTTPS,
    "metrics.tls_cert=null": ["metrics.tls_key=null"],
    "metrics.tls_key=null": ["metrics.tls_cert=null"],
    "metrics.file_sd_dir": SERVED,
    "metrics.textfile_dir": SERVED,
}
"""Settings that a field or a value (`field=value`) needs to have an effect."""
NOT_FINITE = (7, "the loss is nan at epoch")
REFUSED: dict[str, tuple[int, str]] = {
    "data.train=null": (2, "data.train: not set"),
    "data.train_size=1": (3, "the config says 1, train has 8"),
    "data.columns.path=missing": (3, "missing"),
    "data.columns.label=missing": (3, "missing"),
    "data.crop_padding=16": (2, "16 is too much for the images of 16 px"),
    "data.crop_aspect=[1.5, 0.75]": (2, r"expected \[smallest, largest\], found \[1.5, 0.75\]"),
    "data.rand_augment=[0, 0]": (2, "operations 1-16"),
    "data.rand_augment=[1, 31]": (2, "magnitude 0-30"),
    "data.mean=[-0.1, 0.5, 0.5]": (2, "-0.1 is below 0"),
    "data.mean=[123.7, 116.3, 103.5]": (2, "divide them by 255"),
    "data.std=[58.4, 57.1, 57.4]": (2, "divide them by 255"),
    "model.name=resnet_50": (2, "unknown model; did you mean resnet50"),
    "model.num_classes=1": (3, "the config says 1, train has 2"),
    "model.padding=same": (2, "same is for nfnet_f0 … nfnet_f6, found resnet8_cifar"),
    "model.weights=missing.safetensors": (4, "No such file"),
    'model.freeze=["stem", "stages", "classifier"]': (2, "nothing is left to train"),
    'model.freeze=["head"]': (2, "head: no such part"),
    "optimizer.weight_decay=1.7976931348623157e+308": NOT_FINITE,
    "lr.base=1.7976931348623157e+308": NOT_FINITE,
    "optimizer.trust_coefficient=1.7976931348623157e+308": NOT_FINITE,
    "lr.points=[]": (2, "schedule piecewise needs points"),
    "lr.cycle_epochs=null": (2, "schedule cyclical needs cycle_epochs"),
    "phases.0.lr=1.7976931348623157e+308": NOT_FINITE,
    'phases.0.freeze=["head"]': (2, "phases.0.freeze: head: no such part"),
    'phases.0.unfreeze=["stages"]': (2, "stages is not frozen"),
    "train.loss_scale=1e+38": (7, "all 2 updates were skipped"),
    "train.teacher.weights=missing.safetensors": (4, "No such file"),
    "train.teacher.model=resnet18": (4, "made by another model"),
    "train.teacher.model=null": (2, "train.teacher.model: not set"),
    "train.stop_when=ftp://host/notice": (2, "expected a file, or a URL"),
    "checkpoint.mirror=https://host/runs": (2, "expected a folder, or a URL with s3://, gs://"),
    "metrics.bind=192.0.2.1": (6, "metrics.bind"),
    "metrics.token_file=missing": (6, "missing"),
    "metrics.tls_cert=missing": (6, "missing"),
    "metrics.tls_key=missing": (6, "missing"),
    "metrics.tls_client_ca=missing": (6, "missing"),
    "metrics.calibration=missing": (6, "missing"),
    "metrics.file_sd_dir=train/0/0.png": (6, "no such folder"),
    "metrics.file_sd_dir=missing": (6, "no such folder"),
    "metrics.textfile_dir=train/0/0.png": (6, "cannot be written"),
    "metrics.textfile_dir=missing": (6, "cannot be written"),
    "metrics.pushgateway=gateway": (2, "expected a URL"),
    "metrics.pushgateway=http://[::1": (2, "expected a URL"),
    "metrics.pushgateway=": (2, "expected a URL"),
}
"""`field=value`: exit code and a part of the line, for values that do not fit this run."""
ON_TWO: dict[str, tuple[int, str]] = {
    "comm.interface=10.9.8.0/24": (5, "no usable interface is 10.9.8.0/24"),
    "comm.interface=nothing0": (5, "no usable interface is nothing0"),
}
"""The same where two ranks differ from one."""
LIBRARIES = {
    "metrics.tensorboard=true": ("tensorboard", 6),
    "checkpoint.mirror=s3://bucket/runs": ("s3fs", 2),
    "model.name=timm:resnet18": ("timm", 2),
    "model.name=torchvision:resnet18": ("torchvision", 2),
}
"""Values that need a library, and the exit code without it."""

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
