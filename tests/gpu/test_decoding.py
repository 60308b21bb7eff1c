"""DALI decodes on the GPU (`mixed`) to the pixels of the CPU."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.engine.build import open_loaders, share_data
from hvdtrain.plan.epochs import make_plan
from tests.unit.pipelines.samples import photograph

CONFIG = """
data: {{train: {root}, val: {root}, augment: {augment}, decode_threads: 2,
  mean: [0, 0, 0], std: [0.00392156862745098, 0.00392156862745098, 0.00392156862745098]}}
phases: [{{epochs: 1, image_size: 32, batch_per_worker: 4}}]
"""
AUGMENTS = [
    *("random_resized_crop", "pad_crop", "none"),
    "pad_crop, padding_mode: zero, crop_padding: 6, flip: alternating",
    "none, rotation: 10, translation: 0.2",
]
"""`data.augment` and settings beside it."""


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten smooth colour pictures with full chroma, each of another size."""
    root = tmp_path_factory.mktemp("coloured")
    sizes = np.random.default_rng(0).integers(40, 120, (10, 2)).tolist()
    for k, (height, width) in enumerate(sizes):
        folder = root / str(k % 2)
        folder.mkdir(exist_ok=True)
        photograph(k, height, width).save(folder / f"{k}.jpg", quality=95, subsampling=0)
    return root


def levels(root: Path, augment: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Every training and evaluation image, 0 to 255, by its part and sample id."""
    cfg = parse_config(CONFIG.format(root=root, augment=augment))
    comm = Solo()
    images: dict[str, torch.Tensor] = {}
    with contextlib.closing(open_loaders(cfg, comm, device, 2)) as loaders:
        share_data(comm, loaders)
        [epoch] = make_plan(cfg, comm.size, loaders.num_train).epochs
        batches = {
            "train": (batch for _, batch in loaders.train(epoch)),
            "val": loaders.val(epoch),
        }
        for part, of_part in batches.items():
            for batch in of_part:
                assert batch.images.device == batch.labels.device == batch.weights.device == device
                for i, image, weight in zip(
                    batch.indices, batch.images, batch.weights, strict=True
                ):
                    if weight:
                        images[f"{part} {i}"] = image.float().cpu()
    return images


@pytest.mark.parametrize("augment", AUGMENTS)
def test_pixels_are_those_of_the_cpu(gpu: torch.device, coloured: Path, augment: str) -> None:
    """Within 1.5 of 255 levels on average and 6 at most, leaving out the outermost pixels: there
    DALI repeats the border where the CPU's filter ends."""
    expected = levels(coloured, augment, torch.device("cpu"))
    found = levels(coloured, augment, gpu)
    assert found.keys() == expected.keys()
    assert len(expected) == 20
    for name, image in found.items():
        error = (image - expected[name]).abs()
        assert float(error.mean()) < 1.5, name
        # Padding copies the border inside, and movements let rounding decide which pixel is nearest.
        if augment in ("random_resized_crop", "none") or name.startswith("val"):
            assert float(error[:, 1:-1, 1:-1].max()) <= 6, name
