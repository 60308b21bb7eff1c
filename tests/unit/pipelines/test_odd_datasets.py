"""Random datasets with planted oddities: nothing is lost in silence, nothing is refused without cause.

HVDTRAIN_ODD_DATASETS sets how many datasets are made of all kinds together (default 200).
"""

# ruff: noqa: PT017 - a refusal is one of two right answers

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvdtrain.errors import DataError
from pipelines.sources.left_out import left_out_of
from pipelines.sources.opening import open_source
from tests.unit.pipelines.odd_datasets import Odd, lists, trees, write_list, write_tree
from tests.unit.pipelines.tar_samples import contents
from tests.unit.pipelines.test_tar_oracle import FORMS, packed, plain_reading, tars

COUNT = int(os.environ.get("HVDTRAIN_ODD_DATASETS", "200"))
ODD = settings(
    max_examples=max(1, COUNT // 3),
    deadline=None,
    derandomize="HVDTRAIN_ODD_DATASETS" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def check(odd: Odd) -> None:
    """Either a justified refusal in one line, or all that the plain reader found."""
    try:
        source = open_source(str(odd.path), "data.train")
    except DataError as error:
        assert odd.refused, f"refused without cause: {error}"
        assert str(error).isprintable()
        assert str(odd.path) in str(error)
        return
    assert not odd.refused, "not refused"
    found = Counter(
        (os.path.normpath(os.fsencode(source.name(i))), source.classes[source.labels[i]])
        for i in range(len(source))
    )
    assert found == odd.samples
    assert sum(left_out_of(source).counts.values()) == odd.left_out


@given(plan=trees())
@ODD
def test_class_folders(plan):
    with tempfile.TemporaryDirectory() as folder:
        check(write_tree(plan, Path(folder)))


@given(plan=lists())
@ODD
def test_lists_and_label_files(plan):
    with tempfile.TemporaryDirectory() as folder:
        check(write_list(plan, Path(folder)))


@given(shards=st.lists(tars(), min_size=2, max_size=4), form=st.sampled_from(FORMS))
@ODD
def test_several_shards(shards, form):
    with tempfile.TemporaryDirectory() as folder:
        samples, used, total = Counter(), 0, 0
        for number, (archives, _refused) in enumerate(shards):
            path = Path(folder, f"s{number}.tar")
            path.write_bytes(b"".join(packed(parts, form) for parts in archives))
            if not any(refused for _archives, refused in shards):
                found, members, everything = plain_reading(path)
                samples.update((content, str(label)) for content, label in found)
                used, total = used + members, total + max(1, everything)  # an empty tar counts
        try:
            source = open_source(folder, "data.train")
        except DataError as error:
            assert not samples, f"refused without cause: {error}"
            assert str(error).isprintable()
            assert folder in str(error)
            return
        assert Counter(contents(source)) == samples
        assert used + sum(left_out_of(source).counts.values()) == total
