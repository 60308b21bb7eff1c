"""The loaders that `loader.py` compares; each yields batches without end.

All batches are float32 [N, 3, S, S]: random resized crops (area 0.08-1, aspect 3/4-4/3, bilinear
with antialiasing), mirrored with probability 0.5, normalised by ImageNet's mean and standard
deviation, in a new random order every epoch. hvdtrain's tensors are channels_last, as its training
loop needs them; "contiguous" converts them to the layout of the other loaders.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Setting:
    """Arguments of every loader."""

    work: Path
    """Folder that `loader_data.prepare` has filled."""
    size: int
    """Side of the images in pixels."""
    threads: int
    """Cores, decoding threads and worker processes."""
    device: str
    """cpu or cuda."""

    @property
    def copies(self) -> str:
        """Name of the pre-resized copies for this size."""
        return "160" if self.size <= 142 else "256"


Batches = Iterator[torch.Tensor]


def hvdtrain(setting: Setting, data: str = "original") -> Batches:
    """hvdtrain's own loader, epoch after epoch as in training."""
    from hvdtrain.config.data import Data
    from pipelines.loader import Loaders

    config = Data(train=str(setting.work / data), decode_threads=setting.threads)
    device = torch.device(setting.device)
    with Loaders(config, seed=0, rank=0, world_size=1, device=device) as loaders:

        def epoch(index: int) -> Any:
            return SimpleNamespace(
                index=index,
                image_size=setting.size,
                val_image_size=setting.size,
                min_crop_area=AREA[0],
                crop_aspect=list(ASPECT),
                interpolation="bilinear",
                batch_per_worker=BATCH,
                accumulate=1,
                start=0,
                steps=-(-loaders.num_train // BATCH),
            )

        for index in itertools.count():
            for _i, batch in loaders.train(epoch(index), epoch(index + 1)):
                yield batch.images


def hvdtrain_contiguous(setting: Setting) -> Batches:
    """hvdtrain's loader; the consumer converts the batches to contiguous NCHW."""
    for images in hvdtrain(setting):
        yield images.contiguous()


def hvdtrain_packed(setting: Setting) -> Batches:
    """hvdtrain's loader on the output of `hvdtrain data pack --short-side 160,256,orig`."""
    return hvdtrain(setting, "packed")


def dali(setting: Setting, data: str = "original") -> Batches:
    """DALI as in its documentation; batches become torch tensors without a copy."""
    from nvidia.dali import fn, pipeline_def, types
    from torch.utils.dlpack import from_dlpack

    on_gpu = setting.device == "cuda"

    @pipeline_def(
        batch_size=BATCH, num_threads=setting.threads, device_id=0 if on_gpu else None, seed=0
    )
    def graph() -> Any:
        encoded, _label = fn.readers.file(
            file_root=str(setting.work / data), random_shuffle=True, name="reader"
        )
        images = fn.decoders.image_random_crop(
            encoded,
            device="mixed" if on_gpu else "cpu",
            random_area=list(AREA),
            random_aspect_ratio=list(ASPECT),
        )
        return fn.crop_mirror_normalize(
            fn.resize(images, size=[setting.size] * 2),
            mirror=fn.random.coin_flip(),
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * m for m in MEAN],
            std=[255 * s for s in STD],
        )

    pipeline = graph()
    pipeline.build()
    while True:
        (images,) = pipeline.run()
        yield from_dlpack(images.as_tensor())


def dali_copies(setting: Setting) -> Batches:
    """DALI on the pre-resized copies, as files."""
    return dali(setting, setting.copies)


def crop_box(width: int, height: int) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge in pixels of a random crop, drawn as in torchvision."""
    for _ in range(10):
        area = width * height * random.uniform(*AREA)
        ratio = math.exp(random.uniform(*map(math.log, ASPECT)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = random.randint(0, width - w), random.randint(0, height - h)
            return x, y, x + w, y + h
    return 0, 0, width, height


def augment(image: Image.Image, size: int, *, draft: bool) -> torch.Tensor:
    """Crop, resize, mirror and normalise with PIL and torch.

    `draft`: libjpeg decodes at 1/2, 1/4 or 1/8 of the resolution if the crop then still has at
    least `size` pixels.
    """
    box = crop_box(*image.size)
    if draft:
        least = min(1.0, size / min(box[2] - box[0], box[3] - box[1]))
        width, height = image.size
        image.draft("RGB", (math.ceil(width * least), math.ceil(height * least)))
        x, y = image.size[0] / width, image.size[1] / height
        box = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
    mean = torch.tensor(MEAN)[:, None, None]
    return pixels.div_(255).sub_(mean).div_(torch.tensor(STD)[:, None, None])


class Files(Dataset[torch.Tensor]):
    """Dataset of image files, prepared by `augment`."""

    def __init__(self, folder: Path, size: int, *, draft: bool) -> None:
        self._files = sorted(map(str, folder.rglob("*.*")))
        self._size, self._draft = size, draft

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(self._files[i]) as image:
            return augment(image, self._size, draft=self._draft)


def torch_pil(setting: Setting, *, draft: bool = False) -> Batches:
    """torch's DataLoader; its worker processes use PIL."""
    loader = DataLoader(
        Files(setting.work / "original", setting.size, draft=draft),
        BATCH,
        shuffle=True,
        num_workers=setting.threads,
        persistent_workers=True,
    )
    while True:
        yield from loader


def torch_pil_draft(setting: Setting) -> Batches:
    """DataLoader and PIL, decoding at reduced resolution where that is enough."""
    return torch_pil(setting, draft=True)


def webdataset(setting: Setting) -> Batches:
    """webdataset on tar shards of the originals; worker processes use PIL."""
    import webdataset as wds

    shards = sorted(map(str, (setting.work / "packed" / "orig").glob("*.tar")))
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(100)
        .decode("pil")
        .to_tuple("jpg;jpeg;png")
        .map_tuple(lambda image: augment(image, setting.size, draft=False))
        .map(lambda one: one[0])
    )
    loader = DataLoader(dataset, BATCH, num_workers=setting.threads, persistent_workers=True)
    while True:
        yield from loader


def ffcv(setting: Setting, data: str = "original") -> Batches:
    """FFCV on JPEGs of quality 90 that its writer made from the originals; decoded at full size."""
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    mean, std = 255 * np.array(MEAN), 255 * np.array(STD)
    steps = [
        RandomResizedCropRGBImageDecoder((setting.size,) * 2, AREA, ASPECT),
        RandomHorizontalFlip(),
        NormalizeImage(mean, std, np.float32),
        ToTensor(),
        ToTorchImage(channels_last=False),
    ]
    loader = Loader(
        str(setting.work / f"{data}.beton"),
        batch_size=BATCH,
        num_workers=setting.threads,
        order=OrderOption.RANDOM,
        pipelines={"image": steps, "label": None},
    )
    while True:
        for (images,) in loader:
            yield images


def ffcv_raw(setting: Setting) -> Batches:
    """FFCV on the pre-resized copies, stored as raw pixels."""
    return ffcv(setting, setting.copies)


def turboloader(setting: Setting, data: str = "original") -> Batches:
    """turboloader on a tar file of the originals."""
    import turboloader as turbo

    loader = turbo.DataLoader(
        str(setting.work / f"{data}.tar"),
        batch_size=BATCH,
        num_workers=setting.threads,
        shuffle=True,
        image_size=setting.size,
        output_format="pytorch",
        transform=turbo.ImageNetNormalize(),
        train_aug=True,
        antialias=True,
    )
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for images, _metadata in loader:
            yield torch.as_tensor(images)


def turboloader_copies(setting: Setting) -> Batches:
    """turboloader on a tar file of the pre-resized copies."""
    return turboloader(setting, setting.copies)


PEERS: dict[str, Callable[[Setting], Batches]] = {
    "hvdtrain": hvdtrain,
    "hvdtrain, contiguous NCHW": hvdtrain_contiguous,
    "plain DALI": dali,
    "DataLoader + PIL": torch_pil,
    "DataLoader + PIL draft": torch_pil_draft,
    "webdataset + PIL": webdataset,
    "FFCV jpg": ffcv,
    "turboloader": turboloader,
    "hvdtrain on packed copies": hvdtrain_packed,
    "plain DALI on copies": dali_copies,
    "turboloader on copies": turboloader_copies,
    "FFCV raw copies": ffcv_raw,
}
ON_GPU = ("hvdtrain", "plain DALI", "hvdtrain on packed copies", "plain DALI on copies")
NEEDS = {"webdataset + PIL": "webdataset", "FFCV jpg": "ffcv", "FFCV raw copies": "ffcv"}
NEEDS |= {"turboloader": "turboloader", "turboloader on copies": "turboloader"}
