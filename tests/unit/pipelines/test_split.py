"""`data.val: 0.2`: each image is for training or for validation, and always for the same."""

from __future__ import annotations

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.config.data import Data
from hvdtrain.errors import DataError
from pipelines import copies
from pipelines.datasets import open_datasets, open_training
from pipelines.images.headers import image_size
from pipelines.inventory import file_sizes, has_files, known_sizes, take
from pipelines.sampling import shard_starts
from pipelines.shapes import read_sizes
from pipelines.sources import Source, open_source
from pipelines.sources.split import held_out, split
from pipelines.sources.subset import Subset, origin
from pipelines.watched import watched
from tests.unit.pipelines.loaded import pixels
from tests.unit.pipelines.samples import CLASSES, COUNT, PER_CLASS, Epoch, tree
from tests.unit.pipelines.tar_samples import make, sample
from tests.unit.pipelines.test_cifar import BATCHES, binary

SHARE = 0.3
HELD = 2  # of 7
LEFT = (PER_CLASS - HELD) * len(CLASSES)


def csv(root: Path, folder: Path) -> Path:
    lines = [f"{f},{f.parent.name}\n" for f in sorted(folder.rglob("*.JPEG"))]
    (root / "list.csv").write_text("".join(lines))
    return root / "list.csv"


def shards(root: Path) -> Path:
    for k in range(3):
        rows = [sample(f"{name}-{k}-{i}", name) for name in CLASSES for i in range(3)]
        make(root / f"{k}.tar", *(file for row in rows for file in row))
    return root


def cifar(root: Path) -> Path:
    for name in BATCHES:
        (root / f"{name}.bin").write_bytes(binary(name))
    (root / "batches.meta.txt").write_text("\n".join(f"class{k}" for k in range(10)))
    return root


@pytest.fixture(params=["folder", "csv", "shards", "packed", "copy", "cifar"])
def dataset(request: pytest.FixtureRequest, folder: Path, packed: Path, tmp_path: Path) -> Path:
    made = {
        "folder": lambda: folder,
        "csv": lambda: csv(tmp_path, folder),
        "shards": lambda: shards(tmp_path),
        "packed": lambda: packed,
        "copy": lambda: packed / "48",
        "cifar": lambda: cifar(tmp_path),
    }
    return made[request.param]()


def parts(path: Path, share: float = SHARE, seed: int = 0) -> tuple[Source, Source]:
    train, val = open_training(Data(train=str(path), val=share), seed)
    assert val is not None
    return train, val


def names(source: Source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_every_kind_of_dataset_is_split_by_class(dataset: Path) -> None:
    whole = open_source(str(dataset), "data.train")
    train, val = parts(dataset)
    assert sorted(names(train) + names(val)) == sorted(names(whole))
    assert train.classes == val.classes == whole.classes
    counts = np.bincount(whole.labels, minlength=len(whole.classes))
    wanted = [int(n * SHARE + 0.5) for n in counts.tolist()]
    assert np.bincount(val.labels, minlength=len(counts)).tolist() == wanted
    place = {name: i for i, name in enumerate(names(whole))}
    for part in (train, val):
        for i in range(len(part)):
            j = place[part.name(i)]
            assert part.labels[i] == whole.labels[j]
            assert part.read(i).tobytes() == whole.read(j).tobytes()
            assert watched(part).read(i).tobytes() == whole.read(j).tobytes()


def test_what_is_known_of_the_whole_is_known_of_the_parts(dataset: Path) -> None:
    whole = open_source(str(dataset), "data.train")
    for part in parts(dataset):
        base, ids = origin(part)
        assert base is not part
        assert has_files(part) == has_files(whole)
        for mine, all_of_them in zip(known_sizes(part), known_sizes(whole), strict=True):
            assert mine.tolist() == all_of_them[ids].tolist()
        inventory = take(part, str(dataset))
        assert len(inventory.names) == len(part)
        if has_files(part):
            expected = [len(part.read(i)) for i in range(len(part))]
            assert file_sizes(part, np.arange(len(part))).tolist() == expected
        starts = shard_starts(part)
        assert starts[0] == 0
        assert (np.diff(starts) > 0).all()
        assert starts[-1] < len(part)


def test_the_seed_and_the_names_alone_decide(folder: Path, tmp_path: Path) -> None:
    train, val = parts(folder)
    again = parts(folder)
    assert (train.fingerprint, val.fingerprint) == (again[0].fingerprint, again[1].fingerprint)
    assert names(parts(folder, seed=1)[1]) != names(val)
    assert parts(folder, seed=1)[1].fingerprint != val.fingerprint
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert [n.removeprefix(str(moved)) for n in names(parts(moved)[1])] == [
        n.removeprefix(str(folder)) for n in names(val)
    ]
    assert parts(moved)[1].fingerprint == val.fingerprint


def test_images_that_are_added_hardly_change_the_split(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{name}/{i}.jpg" for name in CLASSES for i in range(50)))
    before = set(names(parts(tmp_path, 0.2)[1]))
    tree(tmp_path, *(f"{name}/new{i}.jpg" for name in CLASSES for i in range(5)))
    train = set(names(parts(tmp_path, 0.2)[0]))
    after = set(names(parts(tmp_path, 0.2)[1]))
    assert len(after) == 33
    assert len(before & after) >= 24
    assert not (train & after)


@pytest.mark.parametrize(
    ("counts", "share", "wanted"),
    [
        ([1, 2, 5, 10], 0.2, [0, 0, 1, 2]),
        ([1, 2, 3], 0.99, [0, 1, 2]),  # one image of each class is for training
        ([5, 5], 0.5, [3, 3]),
        ([4, 0, 4], 0.25, [1, 0, 1]),  # a list may name a class without images
    ],
)
def test_counts_of_the_classes(counts: list[int], share: float, wanted: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    held = held_out(labels, np.zeros(len(labels), dtype=np.uint64), share)
    assert np.bincount(labels[held], minlength=len(counts)).tolist() == wanted


def test_classes_without_a_validation_image_are_named(tmp_path: Path) -> None:
    files = [f"many/{i}.jpg" for i in range(10)] + ["few/0.jpg", "one/0.jpg", "one/1.jpg"]
    tree(tmp_path, *files)
    found = open_datasets(Data(train=str(tmp_path), val=0.2), None, seed=0)
    assert {kind: len(source) for kind, source in found.sources.items()} == {"train": 11, "val": 2}
    assert found.warnings == [
        "data.val: 2 of 3 classes have too few images to hold one out: few, one"
    ]


def test_a_split_without_validation_images_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "ant/0.jpg", "ant/1.jpg", "bee/0.jpg")
    with pytest.raises(DataError) as error:
        parts(tmp_path, 0.2)
    assert str(error.value) == (
        f"data.val: 0.2 of each class of {tmp_path} is less than one image, the largest class has 2: "
        "give a larger share, or a folder of validation images"
    )
    with pytest.raises(DataError, match=r"0\.2 is a share of data\.train, which is not set"):
        open_datasets(Data(val=0.2), None, seed=0)


@pytest.mark.parametrize("kind", ["folder", "packed"])
@pytest.mark.parametrize("shuffle", ["full", "shards"])
def test_loaders_give_each_image_to_one_part(
    make_loaders, folder: Path, packed: Path, kind: str, shuffle: str
) -> None:
    path = {"folder": folder, "packed": packed}[kind]
    train, val = parts(path, seed=5)
    loaders = make_loaders(path, SHARE, shuffle=shuffle, shuffle_window=4)
    assert (loaders.num_train, loaders.num_val) == (len(train), len(val)) == (LEFT, COUNT - LEFT)
    assert names(loaders.sources["val"]) == names(val)
    epoch = Epoch(num_train=LEFT)
    assert len(pixels(batch for _i, batch in loaders.train(epoch))) == LEFT
    assert len(pixels(loaders.val(epoch))) == COUNT - LEFT


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_sizes_are_those_of_the_part(folder: Path, packed: Path, kind: str) -> None:
    _train, val = parts({"folder": folder, "packed": packed}[kind])
    ids = np.array([5, 1])
    with ThreadPoolExecutor(1) as readers:
        sizes = read_sizes(val, ids, readers)
    with_headers = [image_size(val.read(i)) for i in ids.tolist()]
    assert sizes.tolist() == [list(size) for size in with_headers]


def test_a_pass_reads_the_copy_of_its_size(packed: Path) -> None:
    train, _val = parts(packed)
    small = copies.view(train, 32)
    assert isinstance(small, Subset)
    assert small.name(0) == f"{train.name(0)} (copy 32)"
    phase = Epoch()
    object.__setattr__(phase, "largest_image_size", 24)
    (read,) = copies.readings(train, Data(), [phase])
    base, ids = origin(train)
    assert read.copy == "32"
    assert read.bytes_per_image == pytest.approx(base.column("32.size")[ids].mean())


def test_shards_keep_their_samples(tmp_path: Path) -> None:
    whole = open_source(str(shards(tmp_path)), "data.train")
    train, _val = split(whole, SHARE, path=str(tmp_path), seed=0)
    ends = [*shard_starts(train).tolist(), len(train)]
    for first, end in itertools.pairwise(ends):
        assert len({train.name(i).split(":")[0] for i in range(first, end)}) == 1
    assert len(ends) == 4
