"""A valid file of every kind that hvdtrain reads, and how it reads each of them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from hvdtrain.checkpoint_files import verify
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.checkpoint import load_checkpoint, save_checkpoint
from hvdtrain.launch.allocation import slurm_placement
from hvdtrain.launch.hosts import parse_hosts, read_hostfile
from hvdtrain.launch.slurm_task import horovod_variables
from hvdtrain.models.weights import read_tensors
from hvdtrain.paths import RunPaths
from hvdtrain.report.run import read_run
from hvdtrain.run.changes import accepted_before, compare, read_begun
from hvdtrain.run.dataset import _read as read_dataset
from hvdtrain.run.dataset import _recorded_fingerprints, classes_of, recorded_data
from hvdtrain.run.exchange_tuning import _read as read_tuning
from hvdtrain.scaling.calibration_file import read_calibration_file
from hvdtrain.scaling.compare import read_measured
from hvdtrain.telemetry.bad_list import read_list
from pipelines.commands.pack import pack
from pipelines.commands.pack_options import PackOptions
from pipelines.commands.scan import scan
from pipelines.sources.opening import open_source
from pipelines.sources.tar import write_index
from tests.step_samples import network, state_of
from tests.unit.fuzz.mutations import Change, changed

CONFIG = """# A run
name: t
data: {train: images, val: images, mean: [0.4, 0.4, 0.4], columns: {path: file}}
model: &m {name: resnet8_cifar, freeze: [stem]}
lr: {base: 0.4, warmup: none, schedule: piecewise, points: [[0, 0.1], [3, 1.0e+0]]}
phases:
  - {epochs: 6, image_size: [16, 32], batch_per_worker: 16}
  - epochs: 6
    unfreeze: ["stem"]
train: {rollbacks: 2, loss_scale: dynamic}
metrics: {bind: 127.0.0.1, pushgateway: "http://a:9091"}
"""
OVERRIDES = "phases.0.epochs=3\ndata.mean=[0.1, 0.2, 0.3]\nlr.base=1e-2\nname=x\nmodel.freeze=[stem, stages.0]"
SLURM = (
    "SLURM_JOB_ID=7\nSLURM_JOB_NODELIST=n[1-3,07],m\nSLURM_TASKS_PER_NODE=4(x4),1\n"
    "SLURM_CPUS_PER_TASK=2\nSLURM_GPUS_PER_NODE=a100:4"
)
TASK = (
    "SLURM_STEP_NUM_TASKS=4\nSLURM_NTASKS=4\nSLURM_STEP_TASKS_PER_NODE=2(x2)\nSLURM_NODEID=1\n"
    "SLURM_LOCALID=0\nSLURM_PROCID=2\nHVDTRAIN_RENDEZVOUS=127.0.0.1:99\nHVDTRAIN_RANKS=4"
)
EVENTS: list[dict[str, Any]] = [
    {"time": 1.0, "kind": "start", "world_size": 2, "changes": [{"setting": "a", "kind": "identity"}]},
    {"time": 2.0, "kind": "note", "text": "classes: 2"},
    {"time": 3.5, "kind": "train", "step": 4, "epoch": 0.5, "epochs": 1, "loss": 0.7, "seconds": 1.0,
     "step_seconds": 0.25, "samples": 64, "global_batch_size": 16, "images_per_second": 64.0,
     "lr": 0.1, "image_size": 16, "phase": 0, "scaling_efficiency": 0.9},
    {"time": 4.0, "kind": "eval", "step": 4, "epoch": 1.0, "loss": 0.6, "top1": 0.5, "images": 10},
    {"time": 4.1, "kind": "checkpoint", "step": 4, "path": "c", "seconds": 0.1, "bytes": 10},
    {"time": 5.0, "kind": "end", "steps": 4, "wall_seconds": 4.0},
]  # fmt: skip
BAD = [
    {"index": 3, "epoch": 0, "name": "a/3.jpg", "reason": "decode", "detail": "cut short"},
    {"index": 5, "epoch": 1, "name": "b/é.jpg", "reason": "read", "detail": ""},
]
ENTRY = {
    "image_size": 16,
    "batch": 4,
    "images_per_second": 9.5,
    "backward_s": 0.1,
    "release_s": [0.1],
}
CALIBRATION = {
    "model": "m",
    "precision": "fp32",
    "device": "cpu",
    "groups": [4.0],
    "entries": [ENTRY],
}
MEASURED = {
    "hosts": 2,
    "ranks_per_host": 1,
    "link_gbit": 10.0,
    "model": "m",
    "groups": [4.0],
    "release_s": [0.1],
    "compute_s": 0.2,
    "step_s": 0.3,
    "allreduce": [{"bytes": 8, "seconds": 0.1}, {"bytes": 16, "seconds": 0.2}],
}
TUNING = {"group_mb": 16.0, "compression": "none", "world_size": 2}
Mutate = Callable[[bytes, list[Change]], bytes]


class Reader(NamedTuple):
    """One file and what reads it."""

    file: Path
    read: Callable[[], object]
    mutate: Mutate = changed


def in_zip(content: bytes, changes: list[Change]) -> bytes:
    """A zip file with a changed member, whose checksum is right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(members)[changes[0].length % len(members)]
    members[name] = changed(members[name], changes)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    return buffer.getvalue()


def sealed(content: bytes, changes: list[Change]) -> bytes:
    """The metadata of a checkpoint, changed and sealed as if hvdtrain had written them."""
    meta = changed(json.dumps(json.loads(content)["meta"], sort_keys=True).encode(), changes)
    try:
        body = json.dumps(json.loads(meta), sort_keys=True).encode()
    except (ValueError, RecursionError):
        body = meta
    return b'{"meta": %s, "seal": "%s"}' % (body, hashlib.sha256(body).hexdigest().encode())


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (shade, 40, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_images(root: Path) -> None:
    for k in range(4):
        folder = root / "images" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.jpg").write_bytes(jpeg(50 * k))


def some_read(path: Path) -> Callable[[], object]:
    """Opens a dataset and reads some of its images."""

    def read() -> object:
        source = open_source(str(path), "data.train")
        return [
            (source.name(i), source.labels[i], source.read(i)) for i in range(min(len(source), 3))
        ]

    return read


def datasets(root: Path) -> dict[str, Reader]:
    """Readers of datasets: lists, tar shards, their index, a manifest, packed sets."""
    write_images(root)
    names = [f"images/{'ab'[k % 2]}/{k}.jpg" for k in range(4)]
    table = "path,label\n" + "".join(f"{name},{name[7]}\n" for name in names)
    lists = {
        "list.csv": table.encode(),
        "quoted.csv": "".join(f'"{name}";"é, {name[7]}"\r\n' for name in names).encode(),
        "list.tsv": table.replace(",", "\t").encode("utf-16"),
        "list.txt": "".join(f"{name} {k % 2}\n" for k, name in enumerate(names)).encode(
            "utf-8-sig"
        ),
    }
    found = {}
    for name, content in lists.items():
        (root / name).write_bytes(content)
        found[name] = Reader(root / name, some_read(root / name))
    (root / "flat").mkdir()
    for k in range(3):
        (root / f"flat/{k}.jpg").write_bytes(jpeg(k))
    (root / "flat/labels.csv").write_text("0.jpg,0\n1.jpg,1\n2.jpg,1\n")
    found["labels.csv"] = Reader(root / "flat/labels.csv", some_read(root / "flat"))

    (root / "shards").mkdir()
    with tarfile.open(root / "shards/a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for k in range(2):
            label = ("json", b'{"label": 1, "more": [1, {"a": null}]}') if k else ("cls", b"0")
            for ending, content in (("jpg", jpeg(k)[:300]), label):
                member = tarfile.TarInfo(f"{'long/' * 30 if k else ''}{k}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    tar = (root / "shards/a.tar").read_bytes().rstrip(b"\0")
    tar += bytes(-len(tar) % 512 + 1024)  # not the usual ten kilobytes of zeros
    (root / "shards/a.tar").write_bytes(tar)
    (root / "shards/classes.txt").write_text("n01 cat\nn02 dog\n")
    found["tar"] = Reader(root / "shards/a.tar", some_read(root / "shards"))
    found["classes.txt"] = Reader(root / "shards/classes.txt", some_read(root / "shards"))
    (root / "indexed").mkdir()
    (root / "indexed/a.tar").write_bytes(tar)
    write_index(str(root / "indexed"))
    index = root / "indexed/.hvdtrain-index.npz"
    found["tar index"] = Reader(index, some_read(root / "indexed"))
    found["in tar index"] = Reader(index, some_read(root / "indexed"), in_zip)

    (root / "scanned").mkdir()
    write_images(root / "scanned")
    scan(str(root / "scanned/images"), None, 1)
    manifest = root / "scanned/images/.hvdtrain-scan.npz"
    found["manifest"] = Reader(manifest, some_read(root / "scanned/images"))
    found["in manifest"] = Reader(manifest, some_read(root / "scanned/images"), in_zip)

    pack(str(root / "images"), str(root / "packed"), PackOptions((None, 8), threads=1))
    about, packed = root / "packed/dataset.json", some_read(root / "packed")
    [arrays] = (root / "packed").glob("*.npz")

    def packed_anew() -> object:
        """With the right size and checksum of the index in the description."""
        content, described = arrays.read_bytes(), about.read_bytes()
        files = json.loads(described)
        files["files"][arrays.name] = {"size": len(content), "crc32": zlib.crc32(content)}
        about.write_text(json.dumps(files))
        try:
            return packed()
        finally:
            about.write_bytes(described)

    found["dataset.json"] = Reader(about, packed)
    found["packed index"] = Reader(arrays, packed)
    found["in packed index"] = Reader(arrays, packed_anew, in_zip)
    return found


def weights(root: Path) -> dict[str, Reader]:
    """Readers of checkpoints and weights."""
    state = state_of(network())
    labels = {"model": "tiny", "classes": 7, "train_images": 4}
    path = save_checkpoint(state, root / "checkpoints", 2, labels)

    def load() -> object:
        fresh = state_of(network())
        load_checkpoint(fresh, path, verify(path), labels)
        return fresh

    def load_unsealed(file: Path) -> Callable[[], object]:
        def read() -> object:
            meta = json.loads((path / "meta.json").read_bytes())["meta"]
            return load_checkpoint(state_of(network()), path, meta, labels)

        return read

    torch.save({"state_dict": state.model.state_dict(), "epoch": 3}, root / "w.pth")
    content = (path / "model.safetensors").read_bytes()
    (root / "w.safetensors").write_bytes(content)
    return {
        "meta.json": Reader(path / "meta.json", load),
        "in meta.json": Reader(path / "meta.json", load, sealed),
        "checkpoint": Reader(path / "model.safetensors", load),
        "checkpoint header": Reader(path / "model.safetensors", load_unsealed(path), header),
        "weights header": Reader(root / "w.safetensors", lambda: read_tensors(root / "w.safetensors"), header),
        "weights.pth": Reader(root / "w.pth", lambda: read_tensors(root / "w.pth")),
        "in weights.pth": Reader(root / "w.pth", lambda: read_tensors(root / "w.pth"), in_zip),
    }  # fmt: skip


def header(content: bytes, changes: list[Change]) -> bytes:
    """A safetensors file with changes in its first 600 bytes alone, where its header is."""
    return changed(content[:600], changes) + content[600:]


class Names:
    """Of the images in `BAD`."""

    def __len__(self) -> int:
        return 6

    def name(self, i: int) -> str:
        return {3: "a/3.jpg", 5: "b/é.jpg"}.get(i, "c.jpg")


def runs(root: Path) -> dict[str, Reader]:
    """Readers of the files in a run directory."""
    run, paths = root / "run", RunPaths(root / "run")
    state = state_of(network())
    about = {"data": {"classes": ["a"], "train": {"fingerprint": "0", "images": 4, "path": "p"}}}
    checkpoint = save_checkpoint(state, run / "checkpoints", 2, {"train_images": 4}, about=about)
    cfg = load_config_text(root, CONFIG)
    (run / "config.yaml").write_text(CONFIG)
    given = {"accumulate": 1, "batch_per_worker": [16, 32]}
    paths.environment.write_text(json.dumps({"world_size": 4, "given": given, "host": "h"}))
    paths.events.write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    paths.bad_samples.write_text("".join(json.dumps(bad) + "\n" for bad in BAD))
    paths.summary.write_text(json.dumps({"top1": 0.5, "loss": 1.0}))
    paths.tuning.write_text(json.dumps(TUNING))
    kinds = {"train": "0"}
    description = json.dumps({"fingerprints": kinds, "accepted": []}).encode()
    np.savez_compressed(paths.dataset, about=np.frombuffer(description, np.uint8))

    def begun() -> object:
        known, recorded = read_begun(paths), recorded_data(paths, Solo())
        classes_of(recorded)
        _recorded_fingerprints(recorded or {}, None)
        known.batch_for(cfg, 2)
        return compare(known, cfg, 2)

    def bad() -> object:
        return read_list(paths.bad_samples, Names())

    def report() -> object:
        return read_run(run), accepted_before(paths)

    return {
        "events.jsonl": Reader(paths.events, report),
        "environment.json": Reader(paths.environment, lambda: (report(), begun())),
        "config.yaml of a run": Reader(paths.config, lambda: (report(), begun())),
        "summary.json": Reader(paths.summary, report),
        "in meta.json of a run": Reader(checkpoint / "meta.json", begun, sealed),
        "bad_samples.jsonl": Reader(paths.bad_samples, bad),
        "tuning.json": Reader(paths.tuning, lambda: read_tuning(paths.tuning, 2)),
        "dataset.npz": Reader(paths.dataset, lambda: read_dataset(paths.dataset)),
        "in dataset.npz": Reader(paths.dataset, lambda: read_dataset(paths.dataset), in_zip),
    }


def load_config_text(root: Path, text: str) -> Config:
    (root / "config.yaml").write_text(text)
    return load_config(root / "config.yaml")


def variables(file: Path) -> dict[str, str]:
    """The lines of `file` as an environment."""
    text = file.read_bytes().decode("utf-8", "surrogateescape").replace("\0", "")
    return dict(line.partition("=")[::2] for line in text.split("\n"))


def texts(root: Path) -> dict[str, Reader]:
    """Readers of what users write, or a cluster gives."""
    written = {
        "config": CONFIG.encode(),
        "overrides": OVERRIDES.encode(),
        "hosts": b"node1:4,node2:8,10.0.0.1",
        "hostfile": b"# hosts\nnode1 slots=4\nnode2:4\n\nnode3\n",
        "slurm job": SLURM.encode(),
        "slurm task": TASK.encode(),
        "calibration": json.dumps(CALIBRATION).encode(),
        "measured": json.dumps({"points": [MEASURED]}).encode(),
    }
    files = {name: root / f"{name.replace(' ', '-')}.txt" for name in written}
    for name, content in written.items():
        files[name].write_bytes(content)
    load_config_text(root, CONFIG)

    def overrides() -> object:
        text = files["overrides"].read_bytes().decode("utf-8", "surrogateescape")
        return load_config(root / "config.yaml", text.split("\n"))

    def hosts() -> object:
        return parse_hosts(files["hosts"].read_bytes().decode("utf-8", "surrogateescape"))

    def job() -> object:
        return slurm_placement({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", **variables(files["slurm job"])})  # fmt: skip

    reads: dict[str, Callable[[], object]] = {
        "config": lambda: load_config(files["config"]),
        "overrides": overrides,
        "hosts": hosts,
        "hostfile": lambda: read_hostfile(files["hostfile"]),
        "slurm job": job,
        "slurm task": lambda: horovod_variables(variables(files["slurm task"])),
        "calibration": lambda: read_calibration_file(files["calibration"], "metrics.calibration"),
        "measured": lambda: read_measured(files["measured"]),
    }
    return {name: Reader(files[name], read) for name, read in reads.items()}


def readers(root: Path) -> dict[str, Reader]:
    """Every reader with a valid file, in folders below `root`."""
    found: dict[str, Reader] = {}
    for make in (texts, datasets, weights, runs):
        (root / make.__name__).mkdir()
        found |= make(root / make.__name__)
    return found
