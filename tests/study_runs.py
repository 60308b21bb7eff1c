"""Run directories with checkpoints that no training made, for studies of checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from hvdtrain.checkpoint_keep import Keep
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.engine.build import init_state
from hvdtrain.engine.checkpoint import contents, metadata, write_checkpoint
from hvdtrain.engine.progress import Progress
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Position

CONFIG = """
data: {{train: {images}/train, val: {images}/val, augment: none, decode_threads: 1}}
model: {{name: {model}}}
lr: {{base: 0.1, warmup: none, schedule: constant}}
phases: [{{epochs: 9, image_size: {size}, batch_per_worker: 4}}]
train: {{compute_threads: 1}}
"""


def made_run(
    root: Path,
    images: Path,
    *,
    model: str = "resnet8_cifar",
    classes: tuple[str, ...] = ("3", "8"),
    checkpoints: int = 1,
    seed: int = 0,
    size: int = 16,
    bias: float = 0.0,
    **settings: object,
) -> Path:
    """A run over the folder `images`, with a checkpoint after each of the first epochs, whose weights
    wander at random. `bias` is added to the logit of the first class."""
    overrides = [f"seed={seed}", *(f"{key}={value}" for key, value in settings.items())]
    text = CONFIG.format(images=images, model=model, size=size)
    cfg = parse_config(text, "made", overrides)
    paths = RunPaths(root)
    paths.create()
    paths.config.write_text(yaml.safe_dump(cfg.model_dump()))
    state = init_state(cfg, Solo(), torch.device("cpu"), len(classes))
    random = torch.Generator().manual_seed(seed)
    labels = {"model": model, "classes": len(classes)}
    for epoch in range(1, checkpoints + 1):
        with torch.no_grad():
            for name, tensor in state.model.state_dict().items():
                if tensor.is_floating_point():
                    noise = torch.randn(tensor.shape, generator=random)
                    tensor.add_(0.02 * (noise.abs() if "running" in name else noise))
                if name.endswith("bias") and tensor.numel() == len(classes):
                    tensor[0] += bias
        state.progress = Progress(Position(epoch, 0), epoch, epoch, 1.0)
        meta = metadata(state, labels, {"data": {"classes": list(classes)}})
        write_checkpoint(contents(state), meta, paths.checkpoints, Keep(99))
    return root
