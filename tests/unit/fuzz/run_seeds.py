"""Valid checkpoints, weights and files of a run, and how each is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvdtrain.analysis.compare.comparison import Asked as Compared
from hvdtrain.analysis.compare.comparison import compare as compare_runs
from hvdtrain.analysis.compare.text import as_text
from hvdtrain.analysis.study.asked import Asked, Member, as_json
from hvdtrain.analysis.study.asked import begun as begun_study
from hvdtrain.analysis.study.folder import Folder
from hvdtrain.analysis.study.member_results import result_of
from hvdtrain.analysis.study.noise.recorded import read_recorded
from hvdtrain.analysis.study.noise.trade_off import of_recorded
from hvdtrain.checkpoint_files import verify
from hvdtrain.comm.ranks import Solo
from hvdtrain.engine.checkpoint import load_checkpoint, save_checkpoint
from hvdtrain.models.hub_config import published
from hvdtrain.models.weights import read_tensors
from hvdtrain.paths import RunPaths
from hvdtrain.report.run import read_run
from hvdtrain.run.changes import accepted_before, compare, read_begun
from hvdtrain.run.dataset import _read as read_dataset
from hvdtrain.run.dataset import _recorded_fingerprints, classes_of, recorded_data
from hvdtrain.run.exchange_tuning import _read as read_tuning
from hvdtrain.telemetry.bad_list import read_list
from tests.step_samples import network, state_of
from tests.unit.fuzz.mutations import Change, changed
from tests.unit.fuzz.reader import CONFIG, Reader, in_zip, load_config_text, sealed
from tests.unit.models.hub_folder import TIMM, TRANSFORMERS

EVENTS: list[dict[str, Any]] = [
    {"time": 1.0, "kind": "start", "world_size": 2, "changes": [{"setting": "a", "kind": "identity"}]},
    {"time": 2.0, "kind": "note", "text": "classes: 2"},
    {"time": 3.5, "kind": "train", "step": 4, "epoch": 0.5, "epochs": 1, "loss": 0.7, "seconds": 1.0,
     "step_seconds": 0.25, "samples": 64, "global_batch_size": 16, "images_per_second": 64.0,
     "lr": 0.1, "image_size": 16, "phase": 0, "scaling_efficiency": 0.9,
     "gradient_noise_scale": 120.5},
    {"time": 4.0, "kind": "eval", "step": 4, "epoch": 1.0, "loss": 0.6, "top1": 0.5, "images": 10},
    {"time": 4.1, "kind": "checkpoint", "step": 4, "path": "c", "seconds": 0.1, "bytes": 10},
    {"time": 4.2, "kind": "weights", "step": 4, "epoch": 1.0, "distance": 1.5, "layer_distances": {"a": 1.5},
     "epoch_distance": 1.5, "path_length": 2.0, "updates": 4, "update_norms": [0.1, 0.2, 0.3]},
    {"time": 5.0, "kind": "end", "steps": 4, "wall_seconds": 4.0},
]  # fmt: skip
BAD = [
    {"index": 3, "epoch": 0, "name": "a/3.jpg", "reason": "decode", "detail": "cut short"},
    {"index": 5, "epoch": 1, "name": "b/é.jpg", "reason": "read", "detail": ""},
]
TUNING = {"group_mb": 16.0, "compression": "none", "world_size": 2}


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
    of_timm, of_transformers = root / "timm.json", root / "transformers.json"
    of_timm.write_text(json.dumps(TIMM))
    of_transformers.write_text(json.dumps(TRANSFORMERS))
    return {
        "meta.json": Reader(path / "meta.json", load),
        "in meta.json": Reader(path / "meta.json", load, sealed),
        "checkpoint": Reader(path / "model.safetensors", load),
        "checkpoint header": Reader(path / "model.safetensors", load_unsealed(path), header),
        "weights header": Reader(root / "w.safetensors", lambda: read_tensors(root / "w.safetensors"), header),
        "weights.pth": Reader(root / "w.pth", lambda: read_tensors(root / "w.pth")),
        "in weights.pth": Reader(root / "w.pth", lambda: read_tensors(root / "w.pth"), in_zip),
        "config.json of timm": Reader(of_timm, lambda: published(of_timm)),
        "config.json of transformers": Reader(of_transformers, lambda: published(of_transformers)),
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

    def member() -> object:
        of = Member("m", 16, "none", 0.1, 0, 1, ())
        return result_of(of, run, finished=True, diverged=False).row()

    other = root / "other"
    shutil.copytree(run, other)

    def comparison() -> object:
        return as_text(compare_runs(Compared([run, other], unfinished=True)))

    def noise() -> object:
        recorded = read_recorded(run)
        return recorded.parts(), of_recorded(recorded).as_dict()

    study, asked = Folder(root / "study"), Asked("batch-size", (16, 32), seeds=2)
    study.write(asked=as_json(asked, cfg), diverged={"b": "the loss is nan"})
    return {
        "study.json": Reader(study.study, lambda: begun_study(study, asked, cfg)),
        "events.jsonl of a member": Reader(paths.events, member),
        "events.jsonl, compared": Reader(paths.events, comparison),
        "config.yaml, compared": Reader(paths.config, comparison),
        "environment.json, compared": Reader(paths.environment, comparison),
        "events.jsonl for its noise scale": Reader(paths.events, noise),
        "events.jsonl": Reader(paths.events, report),
        "environment.json": Reader(paths.environment, lambda: (report(), begun())),
        "config.yaml of a run": Reader(paths.config, lambda: (report(), begun())),
        "summary.json": Reader(paths.summary, report),
        "in meta.json of a run": Reader(checkpoint / "meta.json", begun, sealed),
        "bad_samples.jsonl": Reader(paths.bad_samples, bad),
        "tuning.json": Reader(paths.tuning, lambda: read_tuning(paths.tuning, 2, auto=False)),
        "dataset.npz": Reader(paths.dataset, lambda: read_dataset(paths.dataset)),
        "in dataset.npz": Reader(paths.dataset, lambda: read_dataset(paths.dataset), in_zip),
    }
