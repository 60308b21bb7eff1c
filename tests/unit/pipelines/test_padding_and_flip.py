"""Padded crops and mirroring on images of their own size: exact pixels, decoded and from the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvdtrain.config.data import Data
from hvdtrain.config.load import parse_config
from hvdtrain.errors import ConfigError
from pipelines.images import augment
from tests.unit.pipelines.loaded import pixels, rank_pixels
from tests.unit.pipelines.samples import Epoch, photograph

LEVELS = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255, 1 / 255, 1 / 255]}  # images in 0..255
COUNT, SIDE = 12, 16
EPOCH = Epoch(COUNT, image_size=SIDE, batch_per_worker=6)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("squares")
    for k in range(COUNT):
        (root / str(k % 2)).mkdir(exist_ok=True)
        photograph(k, SIDE, SIDE).save(root / str(k % 2) / f"{k:02}.png")
    return root


def levels(squares: Path, i: int) -> np.ndarray:
    return np.asarray(Image.open(sorted(squares.rglob("*.png"))[i]), dtype=np.float32)


@pytest.mark.parametrize(("mode", "numpy_mode"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("padding", [2, SIDE - 1, None])
def test_padding_is_as_wide_and_of_the_kind_that_is_given(
    make_loaders, squares: Path, mode: str, numpy_mode: str, padding: int | None
) -> None:
    values = {"augment": "pad_crop", "padding_mode": mode, "crop_padding": padding, **LEVELS}
    decoded = rank_pixels(make_loaders, squares, EPOCH, **values)
    with make_loaders(squares, cache="ram", **values) as cached:
        cached.accept([cached.offer()])
        kept = pixels(batch for _i, batch in cached.train(EPOCH))
    for i in range(COUNT):
        draws = augment.draw(np.array([i]), seed=5, epoch=0)
        pad, ((y, x),) = augment.pad_offsets(draws, SIDE, padding)
        assert pad == (padding or SIDE // 8)
        widths = ((pad, pad), (pad, pad), (0, 0))
        image = np.pad(levels(squares, i), widths, mode=numpy_mode)[y : y + SIDE, x : x + SIDE]
        expected = image[:, ::-1] if draws.flip[0] < 0.5 else image
        for found in (decoded, kept):
            assert np.abs(found[i].permute(1, 2, 0).numpy() - expected).max() < 1e-3


def test_alternating_mirrors_half_at_first_and_then_every_other_time(
    make_loaders, squares: Path
) -> None:
    values = {"augment": "none", "flip": "alternating", **LEVELS}
    seen = []
    for index, ranks in ((0, 1), (1, 2), (2, 3)):
        epoch = Epoch(COUNT, ranks, index, image_size=SIDE, batch_per_worker=2)
        seen.append(rank_pixels(make_loaders, squares, epoch, **values))
    straight = [levels(squares, i) for i in range(COUNT)]
    mirrored = [
        [bool((image[i].permute(1, 2, 0).numpy() != straight[i]).any()) for i in range(COUNT)]
        for image in seen
    ]
    assert 0 < sum(mirrored[0]) < COUNT
    assert mirrored[1] == [not one for one in mirrored[0]]
    assert mirrored[2] == mirrored[0]
    ids = np.arange(20_000)
    share = augment.alternating(ids, seed=0, view=0).mean()
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 20_000)


def test_copies_of_an_image_are_mirrored_in_turn(make_loaders, squares: Path) -> None:
    values = {"augment": "none", "flip": "alternating", "repeats": 5, **LEVELS}
    seen: dict[int, list[bool]] = {i: [] for i in range(COUNT)}
    for index in range(5):
        epoch = Epoch(COUNT, 1, index, image_size=SIDE, batch_per_worker=6)
        for _i, batch in make_loaders(squares, **values).train(epoch):
            for i, image in zip(batch.indices.tolist(), batch.images, strict=True):
                straight = levels(squares, i)
                seen[i].append(bool((image.permute(1, 2, 0).numpy() != straight).any()))
    assert {len(views) for views in seen.values()} == {5}
    for views in seen.values():
        assert views in ([True, False] * 2 + [True], [False, True] * 2 + [False])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"crop_padding": 2}, "crop_padding: 2 needs augment: pad_crop"),
        ({"repeats": 3, "on_bad": "mask"}, "repeats: 3 needs on_bad: fail"),
        ({"augment": "none", "padding_mode": "zero"}, "zero needs augment: pad_crop, found none"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(
    settings: dict[str, object], line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        Data.model_validate(settings)


def test_padding_as_wide_as_the_smallest_image_is_refused() -> None:
    text = (
        "data: {{augment: pad_crop, crop_padding: {}}}\n"
        "phases: [{{epochs: 4, image_size: [64, 8], size_multiple: 8}}]"
    )
    parse_config(text.format(23))
    with pytest.raises(ConfigError, match=r"24 is too much .* 24 px in phases.0: use at most 23"):
        parse_config(text.format(24))
