"""Loaders say in one line what is wrong with a file, a plan or an order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hvdtrain.errors import DataError
from tests.unit.pipelines.loaded import own_threads, pixels
from tests.unit.pipelines.samples import COUNT, Epoch


def damaged(folder: Path, root: Path, damage) -> Path:
    """A copy of `folder` with its file bee/3.JPEG damaged; returns that file."""
    shutil.copytree(folder, root)
    bad = root / "bee" / "3.JPEG"
    data = bad.read_bytes()
    bad.write_bytes(damage(data))
    return bad


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"this is text",
        lambda data: data[: len(data) // 3],
        lambda data: data[:2] + bytes(40) + data[42:],
    ],
    ids=["empty", "text", "truncated", "header"],
)
def test_a_bad_file_is_named_in_one_line(make_loaders, folder, tmp_path, damage):
    bad = damaged(folder, tmp_path / "images", damage)
    loaders = make_loaders(tmp_path / "images", folder, augment="none")
    with pytest.raises(DataError) as error:
        list(loaders.train(Epoch()))
    assert str(error.value).startswith(f"{bad}: ")
    assert "\n" not in str(error.value)
    assert len(pixels(loaders.val(Epoch()))) == COUNT  # the loaders can go on


def test_a_file_deleted_after_listing_is_named(make_loaders, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    loaders = make_loaders(tmp_path / "images")
    (tmp_path / "images" / "ant" / "2.JPEG").unlink()
    with pytest.raises(DataError, match=r"ant/2\.JPEG: cannot read: No such file"):
        list(loaders.train(Epoch()))
    loaders.close()
    assert own_threads() == []


def test_a_plan_for_another_number_of_images_is_refused(make_loaders, folder):
    with pytest.raises(DataError, match="21 images make 6 steps in epoch 0, the plan has 8"):
        make_loaders(folder).train(Epoch(num_train=30))


def test_a_missing_dataset_is_named(make_loaders, folder):
    with pytest.raises(DataError, match=r"data\.train: not set"):
        make_loaders(None)
    with pytest.raises(DataError, match=r"data\.val: not set"):
        make_loaders(folder).val(Epoch())
    assert make_loaders(None, folder).num_train == 0


def test_ranks_that_list_other_files_have_another_fingerprint(make_loaders, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    assert make_loaders(folder).fingerprints == make_loaders(tmp_path / "images").fingerprints
    (tmp_path / "images" / "ant" / "2.JPEG").unlink()
    assert make_loaders(folder).fingerprints != make_loaders(tmp_path / "images").fingerprints


def test_an_order_that_keeps_classes_together_gives_a_warning(make_loaders, tmp_path):
    for label in range(8):
        folder = tmp_path / f"c{label}"
        folder.mkdir()
        for k in range(128):  # never decoded
            (folder / f"{k}.jpg").write_bytes(b"")
    assert make_loaders(tmp_path).order_warning() is None
    wide = make_loaders(tmp_path, shuffle="shards", shuffle_window=100_000)
    assert wide.order_warning() is None
    text = make_loaders(tmp_path, shuffle="shards", shuffle_window=1).order_warning()
    assert "256 images in a row have 2 classes on average, 8 with shuffle full" in text
