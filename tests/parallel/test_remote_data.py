"""Two ranks train on images of a real server: the same weights as from a disk, also if a run changes between the two.

`HVDTRAIN_REMOTE_SHARDS=200` makes so many shards (12 without).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvdtrain.checkpoint_files import MODEL_FILE, list_checkpoints
from pipelines.commands.pack import pack
from pipelines.commands.pack_options import PackOptions
from tests import stores
from tests.parallel.commands import run_commands
from tests.unit.pipelines.samples import photograph
from tests.web import serving

SHARDS = int(os.environ.get("HVDTRAIN_REMOTE_SHARDS", "12"))
IMAGES = 4  # in a shard
CONFIG = """
data: {flip: true, decode_threads: 1}
model: {name: resnet8_cifar}
lr: {base: 0.05, warmup: none, schedule: constant}
train: {compute_threads: 1}
phases: [{epochs: 1, image_size: 16, batch_per_worker: 4}]
metrics: {enabled: false}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packed dataset `set`, whose shards are in `set/orig`."""
    root, images = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("images")
    for k in range(SHARDS * IMAGES):
        place = images / f"class{k % 3}" / f"{k:04d}.png"
        place.parent.mkdir(exist_ok=True)
        photograph(k, 20 + k % 5, 24).save(place)
    pack(str(images), str(root / "set"), PackOptions((None,), shard_images=IMAGES, threads=1))
    (root / "set/orig/classes.txt").write_text("class0\nclass1\nclass2\n")
    return root


@pytest.fixture(scope="module")
def pattern() -> str:
    return f"set/orig/{{00000..{SHARDS - 1:05d}}}.tar"


@pytest.fixture(scope="module")
def trained(shards: Path, pattern: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights after two epochs from the disk."""
    work = tmp_path_factory.mktemp("disk")
    (work / "c.yaml").write_text(CONFIG)
    data = [f"data.train={shards}/{pattern}", f"data.val={shards}/set"]
    done = run_commands(2, {"train": command(*data, "phases.0.epochs=2")}, work)
    assert done["train"].codes == [0, 0], done["train"].stderr
    return weights(work)


def command(*more: str) -> list[str]:
    return ["train", "c.yaml", "--run-dir", "run", *more]


def weights(work: Path) -> bytes:
    return (list_checkpoints(work / "run" / "checkpoints")[0] / MODEL_FILE).read_bytes()


@pytest.mark.parametrize("kind", ["web", "nginx", "s3"])
def test_same_weights_as_from_a_disk(kind, shards, pattern, trained, tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text(CONFIG)
    disk = [f"data.train={shards}/{pattern}", f"data.val={shards}/set"]
    with _served(kind, shards, tmp_path, monkeypatch) as url:
        far = [f"data.train={url}/{pattern}", f"data.val={url}/set"]
        far.append(f"data.remote_cache.folder={tmp_path}/cache")
        first, second = (disk, far) if kind == "nginx" else (far, disk)
        resume = ["phases.0.epochs=2", "--resume", "run"]
        commands = {"begin": command(*first), "go on": ["train", "c.yaml", *second, *resume]}
        done = run_commands(2, commands, tmp_path)
    for outcome in done.values():
        assert outcome.codes == [0, 0], outcome.stderr
        assert stores.SECRET not in outcome.stdout + outcome.stderr
    assert weights(tmp_path) == trained


@contextlib.contextmanager
def _served(kind: str, folder: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of `folder` on a server of the kind."""
    if kind == "web":
        with serving(folder) as web:
            web.faults = ["503", "cut", "reset"]
            yield web.url
    elif kind == "nginx":
        with stores.nginx(folder, work) as address:
            yield address
    else:
        with stores.s3(folder) as address:
            for name, value in {**stores.KEYS, "AWS_ENDPOINT_URL": address}.items():
                monkeypatch.setenv(name, value)
            yield "s3://bucket"
