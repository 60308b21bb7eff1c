"""Loaders over datasets on a web server: the same pixels on the same rank as from a disk."""

from __future__ import annotations

import pytest

from hvdtrain.config.data import RemoteCache
from pipelines.commands.pack import pack
from pipelines.commands.pack_options import PackOptions
from pipelines.stream import FAR_READERS
from tests.unit.pipelines.loaded import rank_pixels, same
from tests.unit.pipelines.samples import Epoch
from tests.web import serving


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    """A packed dataset, which also is a folder of tar shards, on a server."""
    root = tmp_path_factory.mktemp("served")
    pack(str(folder), str(root / "packed"), PackOptions((None, 48), shard_images=4, threads=2))
    with serving(root) as web:
        yield web


@pytest.mark.parametrize("shuffle", ["full", "shards"])
@pytest.mark.parametrize("path", ["packed", "packed/orig/0000{0..3}.tar"])
def test_the_pixels_of_two_ranks_are_those_of_the_disk(
    make_loaders, served, tmp_path, path, shuffle
):
    shards = len(list((served.folder / "packed" / "orig").glob("*.tar")))
    path = path.replace("{0..3}", f"{{0..{shards - 1}}}")
    more = {"shuffle": shuffle, "shuffle_window": 5}
    cache = RemoteCache(folder=str(tmp_path / "cache"))
    epoch = Epoch(world_size=2)
    here = rank_pixels(make_loaders, f"{served.folder}/{path}", epoch, **more)
    far = rank_pixels(make_loaders, f"{served.url}/{path}", epoch, remote_cache=cache, **more)
    assert same(here, far)


def test_more_threads_read_from_a_server(make_loaders, served, tmp_path):
    cache = RemoteCache(folder=str(tmp_path / "cache"))
    with make_loaders(f"{served.url}/packed", remote_cache=cache) as loaders:
        assert loaders._readers.count == FAR_READERS
        assert not loaders._watched
