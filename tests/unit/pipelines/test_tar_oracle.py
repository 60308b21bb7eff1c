"""Random tars with planted oddities: samples and what is left out are all that a plain reader finds.

The reader is Python's tarfile, which goes on behind end marks. HVDTRAIN_ODD_DATASETS sets how many
tars are made (default 200).
"""

from __future__ import annotations

import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdtrain.errors import DataError
from pipelines.sources.tar import TarShards, write_index
from tests.unit.pipelines.odd_datasets import COUNT, SETTINGS
from tests.unit.pipelines.odd_shards import ACCEPTED, FORMS, packed, plain_reading, tars
from tests.unit.pipelines.tar_samples import contents


@given(odd=tars(), form=st.sampled_from(FORMS), indexed=st.booleans())
@settings(SETTINGS, max_examples=COUNT)
def test_nothing_is_lost_in_silence(odd, form, indexed):
    archives, refused = odd
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.tar")
        path.write_bytes(b"".join(packed(parts, form) for parts in archives))
        if refused:
            with pytest.raises(DataError, match=r"s\.tar: "):
                TarShards(str(path), "data.train")
            return
        samples, used, total = plain_reading(path)
        if not samples:
            with pytest.raises(DataError, match="no images in the tar files"):
                TarShards(str(path), "data.train")
            return
        if indexed:
            write_index(str(path))
        source = TarShards(str(path), "data.train")
        assert [(bytes_, int(name)) for bytes_, name in contents(source)] == samples
        assert used + sum(source.left_out.counts.values()) == total


def test_samples_are_those_of_the_webdataset_library(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    parts = [part for k, make in enumerate(ACCEPTED.values()) for part in make(f"k{k}", k % 3)]
    links = (tarfile.LNKTYPE, tarfile.SYMTYPE)  # it passes over these, and reads hidden folders
    plain = [part for part in parts if part[2] not in links and not part[0].startswith(".c/")]
    path = tmp_path / "s.tar"
    path.write_bytes(packed(plain, tarfile.PAX_FORMAT))
    pictures: Counter[bytes] = Counter()
    for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
        picture = sample.get("jpg") or sample.get("png")
        if picture and not sample["__key__"].startswith("@eaDir"):
            pictures[picture] += 1
    assert pictures == Counter(picture for picture, _l in contents(TarShards(str(path), "x")))
