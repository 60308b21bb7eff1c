"""Odd files are decoded as PIL does; bad ones are refused with a reason, or masked exactly."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, ImageOps

from hvdtrain.errors import DataError
from pipelines.bad import PIXEL_LEVEL, BadSample, Quarantine
from pipelines.images.headers import HeaderError, image_size
from tests import bad_files
from tests.bad_files import BAD, LEFT_OUT, ON_DISK, SILENT, SOUND, Kind
from tests.unit.pipelines.samples import Epoch, photograph

LEVELS = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255, 1 / 255, 1 / 255]}  # images in 0..255
GREY = 255 * PIXEL_LEVEL


@pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
def whole_image():
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    return fn.decoders.image(encoded, output_type=types.RGB)


def by_pil(data: bytes) -> np.ndarray:
    """Upright RGB; of 16-bit gray the high byte, which PIL would clip."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"), dtype=np.int16)


def test_good_files_are_decoded_as_pil_does():
    decoder = whole_image()
    for name, kind in SOUND.items():
        encoded = np.frombuffer(kind.data(), np.uint8)
        reference = by_pil(kind.data())
        assert image_size(encoded) == reference.shape[:2], name
        decoded = decoder.run(encoded=[encoded])[0].at(0).astype(np.int16)
        assert np.abs(decoded - reference).max() <= kind.tolerance, name


def test_there_are_at_least_41_kinds_besides_the_plain_one():
    assert len({**SOUND, **SILENT, **BAD, **ON_DISK}) > 41


@pytest.mark.parametrize("name", [name for name, kind in BAD.items() if kind.reason != "decode"])
def test_what_would_not_decode_is_refused_by_its_header(name):
    with pytest.raises(HeaderError) as error:
        image_size(np.frombuffer(BAD[name].data(), np.uint8))
    assert error.value.reason == BAD[name].reason
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> dict[str, Path]:
    """A class of good files, and one with every kind of bad and odd file; paths by kind."""
    root = tmp_path_factory.mktemp("mixed")
    paths = bad_files.write({**SOUND, **SILENT, **BAD}, root / "files")
    paths |= bad_files.write_on_disk(root / "files")
    plain = {
        f"plain_{k}": Kind(lambda k=k: bad_files.jpeg(photograph(k, 50, 70))) for k in range(9)
    }
    bad_files.write(plain, root / "plain")
    return {"": root, **paths}


def epoch_of(loaders, **values) -> Epoch:
    return Epoch(num_train=loaders.num_train, **{"batch_per_worker": 8, **values})


def passes(make_loaders, mixed, epochs=1, **data):
    """Loaders that mask, and all batches of their first epochs; `missing` is gone by then."""
    loaders = make_loaders(mixed[""], on_bad="mask", **LEVELS, **data)
    content = mixed["missing"].read_bytes()
    mixed["missing"].unlink()
    try:
        return loaders, [
            [b for _i, b in loaders.train(epoch_of(loaders, index=e))] for e in range(epochs)
        ]
    finally:
        mixed["missing"].write_bytes(content)


@pytest.mark.parametrize("augment", ["none", "random_resized_crop", "pad_crop"])
def test_every_bad_file_is_masked_and_named_with_its_reason(make_loaders, mixed, augment):
    _loaders, epochs = passes(make_loaders, mixed, epochs=2, augment=augment)
    expected = {str(mixed[name]): kind.reason for name, kind in BAD.items()}
    expected |= {str(mixed[name]): reason for name, reason in ON_DISK.items()}
    for batches in epochs:
        bad = [bad for batch in batches for bad in batch.bad]
        assert {b.name: b.reason for b in bad} == expected
        assert len(bad) == len(expected)
        assert all(b.detail and b.name not in b.detail and b.epoch == 0 for b in bad)
        masked = {b.index for b in bad}
        counted = [int(i) for b in batches for i, w in zip(b.indices, b.weights, strict=True) if w]
        assert len(counted) == len(set(counted))
        assert not masked & set(counted)
        assert len(masked) + len(counted) == _loaders.num_train
        for batch in batches:
            for i, image, weight in zip(batch.indices, batch.images, batch.weights, strict=True):
                if int(i) in masked:
                    assert weight == 0
                    assert torch.allclose(image, torch.full_like(image, GREY), atol=1e-3)


def test_masking_leaves_all_other_pixels_as_they_are(make_loaders, mixed, tmp_path):
    def weighted(batches) -> dict[int, torch.Tensor]:
        return {
            int(i): image.clone()
            for b in batches
            for i, image, w in zip(b.indices, b.images, b.weights, strict=True)
            if w
        }

    _loaders, (batches,) = passes(make_loaders, mixed)
    masked = weighted(batches)
    repaired = tmp_path / "repaired"
    for folder in ("files", "plain"):
        (repaired / folder).mkdir(parents=True)
        for path in (mixed[""] / folder).iterdir():
            if path.stem in LEFT_OUT:
                continue
            good = path.stem not in {**BAD, **ON_DISK}
            data = path.read_bytes() if good else bad_files.jpeg()
            (repaired / folder / path.name).write_bytes(data)
    loaders = make_loaders(repaired, **LEVELS)
    whole = weighted(b for _i, b in loaders.train(epoch_of(loaders)))
    assert len(whole) > len(masked) > 40
    assert all(torch.equal(masked[i], whole[i]) for i in masked)


def test_a_quarantined_sample_is_not_decoded_again(make_loaders, mixed, monkeypatch):
    loaders, _epochs = passes(make_loaders, mixed)
    names = {str(mixed[name]) for name in {**BAD, **ON_DISK}}
    source = loaders._prefetchers["train"].source
    read, original = [], source.read

    def reading(i):
        read.append(source.name(i))
        return original(i)

    monkeypatch.setattr(source, "read", reading)
    list(loaders.train(epoch_of(loaders, index=1)))
    assert len(set(read)) == loaders.num_train - len(names)
    assert not names & set(read)


def test_a_sample_found_bad_by_another_rank_is_masked_in_batches_made_already(make_loaders, mixed):
    loaders = make_loaders(mixed[""], on_bad="mask", augment="none", **LEVELS)
    epoch = epoch_of(loaders, index=3, batch_per_worker=4)
    batches = loaders.train(epoch)
    _i, first = next(batches)
    upcoming = [bad for _i, b in loaders.train(replace(epoch, index=3)) for bad in b.bad]
    victim = next(
        int(i)
        for _k, b in loaders.train(epoch)
        for i, w in zip(b.indices, b.weights, strict=True)
        if w and i not in first.indices
    )
    batches = loaders.train(epoch)
    next(batches)
    loaders.mask([BadSample(victim, 2, "decode", "elsewhere", "damaged")])
    found = [bad for _i, b in batches for bad in b.bad]
    assert victim in {bad.index for bad in found}
    assert victim not in {bad.index for bad in upcoming}


def test_quarantine_counts_from_the_epoch_of_the_failure():
    quarantine = Quarantine()
    quarantine.add([BadSample(7, 5, "decode", "x", "y"), BadSample(7, 3, "decode", "x", "y")])
    quarantine.add([BadSample(7, 4, "decode", "x", "y")])
    assert [quarantine.find(7, epoch) is not None for epoch in (2, 3, 4)] == [False, True, True]
    assert set(quarantine.among(np.array([1, 7, 2, 7]), 3)) == {1, 3}
    assert quarantine.among(np.array([1, 7]), 2) == {}


@pytest.mark.parametrize("name", [*BAD])
def test_one_bad_file_ends_a_strict_run_and_every_evaluation(make_loaders, mixed, tmp_path, name):
    (tmp_path / "a").mkdir()
    for k in range(2):
        (tmp_path / "a" / f"plain_{k}.jpg").write_bytes(bad_files.jpeg())
    bad = tmp_path / "a" / mixed[name].name
    bad.symlink_to(mixed[name])
    loaders = make_loaders(tmp_path, tmp_path)
    with pytest.raises(DataError) as error:
        list(loaders.train(epoch_of(loaders, batch_per_worker=3)))
    assert str(error.value).startswith(f"{bad}: ")
    loaders = make_loaders(tmp_path, tmp_path, on_bad="mask")
    with pytest.raises(DataError) as error:
        list(loaders.val(epoch_of(loaders, batch_per_worker=3)))
    assert str(error.value).startswith(f"{bad}: ")
    assert "\n" not in str(error.value)
