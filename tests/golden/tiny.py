"""A network and runs so small that their checkpoints are kept here: 5,234 parameters.

`python -m tests.golden.tiny ARGUMENTS` is `hvdtrain ARGUMENTS` with the network registered.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from hvdtrain.models import MODELS
from hvdtrain.models.layers import Network, batch_norm, conv, init_weights
from hvdtrain.models.resnet import BasicBlock, stages

CONFIG = """
name: tiny
data: {train: train, val: val, augment: pad_crop, flip: false, decode_threads: 1}
model: {name: tiny}
optimizer: {weight_decay: 5e-4}
lr: {base: 0.05, base_batch: 16, warmup_epochs: 1, schedule: cosine}
phases:
  - {epochs: 6, image_size: 16, batch_per_worker: 16}
  - {epochs: 2, image_size: 24, batch_per_worker: 16}
train: {precision: fp32, ema_decay: 0.8, log_every: 1, noise_scale_every: 1}
metrics: {enabled: false}
"""
CASES: dict[str, tuple[int, list[str]]] = {
    "one_process": (1, []),
    "two_ranks": (2, ["phases.0.batch_per_worker=8", "phases.1.batch_per_worker=8"]),
    "everything": (
        1,
        [
            *("optimizer.name=lamb", "lr.base=0.01", "optimizer.clip_norm=1.0"),
            *("data.augment=random_resized_crop", "data.rand_augment=[1, 5]"),
            *("train.mixup=0.2", "train.cutmix=1.0", "train.label_smoothing=0.1"),
            *("train.accumulate=2", "phases.0.batch_per_worker=8", "phases.1.batch_per_worker=8"),
            *("model.dropout=0.1", "model.stochastic_depth=0.1"),
        ],
    ),
}
"""Ranks and settings of every recorded run; the global batch is 16."""


class Tiny(Network):
    """Two stages of one block, 8 and 16 channels: [N, 3, H, W] float32 → [N, num_classes]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 3), batch_norm(8), nn.ReLU(inplace=True))
        self.stages = stages(BasicBlock, 8, [8, 16], [1, 1])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(16, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.stages(self.stem(images)))


def write_images(digits: Path, root: Path) -> None:
    """Eight training and four validation images of each digit."""
    for split, count in (("train", 8), ("val", 4)):
        for name in "0123456789":
            (root / split / name).mkdir(parents=True)
            for image in sorted((digits / split / name).iterdir())[:count]:
                (root / split / name / image.name).write_bytes(image.read_bytes())


if __name__ == "__main__":
    from hvdtrain.cli.main import main

    MODELS["tiny"] = Tiny
    main()
