"""What `model.weights` and `train.teacher.weights` were: recorded, not needed again, refused if outdated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from torch import nn

from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.teacher import load_teacher
from hvdtrain.engine.weights_source import find_weights
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.run.subject import Subject
from hvdtrain.train import train
from tests.unit.models.hub_folder import COMMIT, NEWER, TIMM, files_of, put_in_cache
from tests.unit.models.plain_resnet import random_resnet
from tests.unit.run.data_runs import config, edit_meta, notes

NAME = "hf:someone/animals"


def with_settings(work: Path, epochs: int, *settings: str) -> Config:
    text = yaml.safe_dump(config(work, epochs).model_dump())
    return parse_config(text, overrides=["train.compute_threads=1", *settings])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a ResNet-18 of the three classes, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    about = {**TIMM, "num_classes": 3, "label_names": ["cat", "ant", "bee"]}
    put_in_cache(tmp_path / "hub", "someone/animals", files_of(random_resnet("resnet18", 3), about))
    return tmp_path / "hub"


def test_a_run_records_its_weights_and_resumes_without_them(work: Path, cache: Path) -> None:
    settings = ("model.name=resnet18", f"model.weights={NAME}", "phases.0.image_size=32")
    train(with_settings(work, 1, *settings), Solo(), run_dir=work / "run")
    first, *_ = (text for text in notes(work) if text.startswith(NAME))
    assert first.startswith(f"{NAME}: model.safetensors of someone/animals, revision {COMMIT}, sha")
    assert any("the same classes in another order" in text for text in notes(work))
    [newest] = (path for path in list_checkpoints(work / "run/checkpoints"))
    recorded = read_meta(newest)["weights_from"]
    assert recorded["revision"] == COMMIT
    assert recorded["sha256"] in {path.name for path in cache.glob("*/blobs/*")}
    summary = work / "run/summary.json"
    assert json.loads(summary.read_text())["weights_from"] == recorded
    shutil.rmtree(cache)
    train(with_settings(work, 2, *settings), Solo(), resume=str(work / "run"))
    assert read_meta(list_checkpoints(work / "run/checkpoints")[0])["weights_from"] == recorded
    assert json.loads(summary.read_text())["weights_from"] == recorded


def test_a_teacher_from_the_hub_says_its_network(work: Path, cache: Path) -> None:
    classes = ["ant", "bee", "cat"]

    def load(*settings: str) -> Any:
        cfg = with_settings(work, 1, f"train.teacher.weights={NAME}", *settings)
        return load_teacher(cfg, Solo(), torch.device("cpu"), 3, classes)

    teacher = load()
    assert "train.teacher: resnet18, sha256" in teacher.notes[0]
    assert any(f"revision {COMMIT}" in note for note in teacher.notes)
    expected = random_resnet("resnet18", 3)["fc.weight"][[1, 2, 0]]
    assert torch.equal(teacher.network.classifier.weight, expected)
    for setting, line in (
        ("train.teacher.model=resnet34", r"of resnet18, and train\.teacher\.model is resnet34"),
        ("data.mean=[0.5,0.5,0.5]", r"was trained with data\.mean \[0\.485, "),
        (f"train.teacher.weights={NAME}@{NEWER}", r"HF_HUB_OFFLINE is set, and the cache "),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=line):
            load(setting)


def test_nfnets_of_earlier_versions_are_refused(trained: Path) -> None:
    """Their weights fit, but were trained with the exact GELU."""
    labels = {"model": "nfnet_f0", "classes": 3}
    edit_meta(trained, labels=labels)
    refused = r"its model is nfnet_f0, this run's is nfnet_f0 with tanh-GELU"
    checkpoint = list_checkpoints(trained / "run/checkpoints")[0]
    for path in (trained / "run", checkpoint, checkpoint / "model.safetensors"):
        for setting in ("model.weights", "train.teacher.weights"):
            with pytest.raises(CheckpointError, match=rf"^{setting}: .*{refused}"):
                find_weights(str(path), setting)
    cfg = parse_config("model: {name: nfnet_f0}\nphases: [{epochs: 1}]")
    subject = Subject(checkpoint, "run", {"labels": labels, "sha256": {}}, cfg)
    with pytest.raises(CheckpointError, match=refused):
        subject.load(nn.Identity())
    edit_meta(trained, labels={**labels, "model": "nfnet_f0 with tanh-GELU"})
    assert find_weights(str(checkpoint), "model.weights").checkpoint == checkpoint
