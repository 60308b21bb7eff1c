"""Resizing by torch gives the images of DALI's graph, and keeps to its own memory and threads."""

from __future__ import annotations

import io
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from hvdtrain.config.data import Data
from pipelines.images import recipes, windows
from pipelines.images.decoder import Decoder
from pipelines.images.headers import image_size
from tests.unit.pipelines.samples import photograph

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


def encode(picture: Image.Image) -> np.ndarray:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95)
    return np.frombuffer(stream.getvalue(), dtype=np.uint8)


def decode(
    kind: type[Decoder], size: int, threads: int = 2, interpolation: str = "bilinear"
) -> torch.Tensor:
    """Eight crops by one kind of decoder, normalised."""
    encoded = [encode(photograph(k, 40 + 9 * k, 100 - 7 * k)) for k in range(8)]
    recipe = recipes.training(
        Data(),
        seed=1,
        epoch=2,
        image_size=size,
        min_area=0.2,
        aspect=(0.75, 4 / 3),
        interpolation=interpolation,
    )
    sizes = np.array([image_size(one) for one in encoded])
    decoder = kind(recipe, MEAN, STD, threads, torch.device("cpu"))
    decoder.submit(encoded, recipe.inputs(np.arange(8), sizes))
    images = decoder.result()
    decoder.reset()
    return images


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 33, 64, 120])
def test_images_equal_those_of_the_graph(size, interpolation):
    ours, graph = (decode(k, size, 2, interpolation) for k in (windows.WindowDecoder, Decoder))
    assert ours.shape == graph.shape == (8, 3, size, size)
    assert ours.stride() == graph.stride()
    levels = (ours - graph).abs() * 255 * torch.tensor(STD).view(3, 1, 1)
    assert levels.mean() < 0.6  # DALI and torch round 8-bit values at different places
    assert levels[..., 1:-1, 1:-1].max() <= 2.01  # at the border their filters differ


def test_images_do_not_depend_on_the_number_of_threads():
    assert torch.equal(decode(windows.WindowDecoder, 48, 1), decode(windows.WindowDecoder, 48, 5))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [20, 50, 130])
def test_resizing_equals_pils_to_one_level(size, interpolation):
    picture = photograph(3, 97, 64)
    theirs = Image.Resampling[interpolation.upper()]
    reference = np.asarray(picture.resize((size, 40), theirs), dtype=np.int16)
    pixels = torch.from_numpy(np.array(picture))
    resized = windows.resize(pixels, 40, size, interpolation).numpy()
    assert np.abs(resized - reference).max() <= 1


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    buffers = windows.Buffers()
    first = buffers.take((2, 3))
    row = first[1]
    address = first.data_ptr()
    del first
    assert buffers.take((2, 3)).data_ptr() != address
    del row
    assert address in {buffers.take((2, 3)).data_ptr() for _ in range(2)}


def test_memory_of_another_shape_is_released():
    buffers = windows.Buffers()
    held, free = buffers.take((4, 4)), buffers.take((4, 4))
    del free
    (memory,) = map(weakref.ref, buffers._free)
    assert buffers.take((2, 3)).shape == (2, 3)
    assert memory() is None
    del held
    assert {one.shape for one in buffers._free} == {(2, 3)}


def test_torch_keeps_its_threads_elsewhere():
    before = torch.get_num_threads()
    pool = windows.single_threaded_workers(3)
    assert [f.result() for f in [pool.submit(torch.get_num_threads) for _ in range(9)]] == [1] * 9
    pool.shutdown()
    assert torch.get_num_threads() == before
