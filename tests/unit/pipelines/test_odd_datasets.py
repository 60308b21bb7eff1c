"""Random datasets with planted oddities: nothing is lost in silence, nothing is refused without cause.

HVDTRAIN_ODD_DATASETS sets how many datasets are made of all kinds together (default 200).
"""

# ruff: noqa: PT017 - a refusal is one of two right answers

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given, settings

from hvdtrain.errors import DataError
from pipelines.sources.left_out import left_out_of
from pipelines.sources.opening import open_source
from tests.unit.pipelines.odd_datasets import (
    COUNT,
    SETTINGS,
    Odd,
    trees,
    write_tree,
    write_wrong_level,
    wrong_levels,
)
from tests.unit.pipelines.odd_lists import lists, write_list
from tests.unit.pipelines.odd_shards import shard_sets, write_shards
from tests.unit.pipelines.tar_samples import contents

MANY, FEW = (settings(SETTINGS, max_examples=max(1, COUNT * share // 10)) for share in (3, 1))


def check(odd: Odd, key: str = "data.train") -> None:
    """Either a justified refusal in one line, or all that the plain reader found."""
    try:
        source = open_source(str(odd.path), key)
    except DataError as error:
        assert odd.refused or odd.unclear, f"refused without cause: {error}"
        assert str(error).isprintable()
        assert str(odd.path.parent) in str(error)
        assert odd.hint in str(error)
        return
    assert not odd.refused, "not refused"
    named = (
        (os.path.normpath(os.fsencode(source.name(i))), source.classes[source.labels[i]])
        for i in range(len(source))
    )
    assert Counter(contents(source) if odd.by_content else named) == odd.samples
    assert sum(left_out_of(source).counts.values()) == odd.left_out


@given(plan=trees())
@MANY
def test_class_folders(plan):
    with tempfile.TemporaryDirectory() as folder:
        check(write_tree(plan, Path(folder)))


@given(plan=wrong_levels())
@FEW
def test_a_folder_above_or_below_the_classes(plan):
    with tempfile.TemporaryDirectory() as folder:
        check(write_wrong_level(plan, Path(folder)), plan[-1])


@given(plan=lists())
@MANY
def test_lists_and_label_files(plan):
    with tempfile.TemporaryDirectory() as folder:
        check(write_list(plan, Path(folder)))


@given(plan=shard_sets())
@MANY
def test_several_shards(plan):
    with tempfile.TemporaryDirectory() as folder:
        check(write_shards(plan, Path(folder)))
