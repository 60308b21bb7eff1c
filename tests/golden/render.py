"""The printed plan of every config in configs/ at the world size of its recipe.

Update the files with `python -m tests.golden.render`, then check the diff.
"""

from __future__ import annotations

from pathlib import Path

from hvdtrain.config.load import load_config
from hvdtrain.plan.epochs import make_plan
from hvdtrain.plan.text import plan_text

FOLDER = Path(__file__).parent
CONFIGS = FOLDER.parents[1] / "configs"

WORLD_SIZES = {
    "cats_dogs_vgg": 1,
    "cifar10_fast_gpu": 1,
    "cifar10_fast_muon": 1,
    "cifar10_fastai_preact18": 1,
    "cifar10_fastai_wrn22": 1,
    "cifar10_fastai_wrn22_8gpu": 8,
    "cifar10_onecycle": 1,
    "cifar10_quick": 2,
    "demo_digits": 2,
    "finetune_small": 1,
    "imagenet_nfnet_f0": 128,
    "imagenet_resnet50_diux_16": 128,
    "imagenet_resnet50_diux_4": 32,
    "imagenet_resnet50_ffcv_16": 8,
    "imagenet_resnet50_ffcv_24": 8,
    "imagenet_resnet50_ffcv_32": 8,
    "imagenet_resnet50_ffcv_40": 8,
    "imagenet_resnet50_ffcv_56": 8,
    "imagenet_resnet50_ffcv_88": 8,
    "imagenet_resnet50_goyal_32x8": 256,
    "imagenet_resnet50_nvidia_250": 8,
    "imagenet_resnet50_nvidia_90": 8,
    "imagenet_resnet50_rsb_a1": 4,
    "imagenet_resnet50_rsb_a2": 4,
    "imagenet_resnet50_rsb_a3": 4,
    "imagenet_resnet50_torchvision_v2": 8,
}
"""Number of ranks of the published run."""
NUM_IMAGES = {
    "cats_dogs_vgg": 10000,
    "cifar10_quick": 50000,
    "demo_digits": 1437,
    "finetune_small": 1600,
}
"""Number of training images, for configs without `expected.images`."""


def render(name: str) -> str:
    """The output of `hvdtrain plan` for the config."""
    cfg = load_config(CONFIGS / f"{name}.yaml")
    return plan_text(cfg, make_plan(cfg, WORLD_SIZES[name], NUM_IMAGES.get(name))) + "\n"


if __name__ == "__main__":
    for config in WORLD_SIZES:
        (FOLDER / f"{config}.txt").write_text(render(config), encoding="utf-8")
