"""Packing: a dataset becomes shards with an index, in one or several resolutions."""

from __future__ import annotations

import io
import threading
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

import numpy as np
from PIL import Image

from hvdtrain.config.data import Columns
from hvdtrain.errors import DataError, ResourceError
from pipelines.commands.pack_folder import PackingFolder, Rejected
from pipelines.commands.pack_options import PackOptions
from pipelines.commands.reports import PackReport
from pipelines.commands.resizer import BATCH, Resizer, Size
from pipelines.commands.shard_writer import ShardWriter
from pipelines.images.headers import HeaderError, image_size
from pipelines.sources import Source, open_source
from pipelines.sources.base import some
from pipelines.sources.left_out import left_out_of
from pipelines.sources.remote.paths import require_local
from pipelines.sources.shuffled import Shuffled


def pack(
    src: str,
    dst: str,
    options: PackOptions,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    columns: Columns | None = None,
) -> PackReport:
    """Pack the dataset at `src` into the folder `dst`.

    `progress(images done, all images)` is called from several threads; `columns`: those of a list. If the process is killed,
    the same call continues with the missing shards. `src` is only read. Raises DataError if `dst`
    is in `src` or holds something else, and, once all shards are made, if images were bad and
    `skip_bad` is not set; ResourceError if `dst` cannot be written.
    """
    require_local(src, "SRC")
    source: Source = open_source(src, "SRC", columns=columns)
    if broken := [name for name in source.classes if "\n" in name or "\r" in name]:
        raise DataError(
            f"SRC: {src}: classes with a line break in their names, which classes.txt cannot have: "
            f"{some(broken)}; rename them"
        )
    left_out = left_out_of(source)
    if options.shuffle:
        source = Shuffled(source)
    try:
        with PackingFolder(src, dst, source, options) as folder:
            if not folder.finished:
                _make_shards(source, folder, options, progress)
                folder.finish(source, skip_bad=options.skip_bad)
            return replace(folder.report(), left_out=left_out)
    except OSError as error:
        raise ResourceError(f"DST: {dst}: cannot be written: {error.strerror or error}") from None


def _make_shards(
    source: Source,
    folder: PackingFolder,
    options: PackOptions,
    progress: Callable[[int, int], None],
) -> None:
    missing = deque(folder.missing(redo_bad=not options.skip_bad))
    done = len(source) - sum(len(folder.samples(shard)) for shard in missing)
    stop, lock = threading.Event(), threading.Lock()
    progress(done, len(source))

    def advance(images: int) -> None:
        nonlocal done
        with lock:
            done += images
            progress(done, len(source))

    def work() -> None:
        resizer = Resizer([side for side in options.short_sides if side is not None])
        try:
            while not stop.is_set():
                with lock:
                    shard = missing.popleft() if missing else None
                if shard is None:
                    return
                _Shard(source, folder, options, shard).make(resizer, advance, stop)
        finally:
            resizer.close()

    threads = max(1, min(options.threads, len(missing)))
    with ThreadPoolExecutor(threads, thread_name_prefix="hvdtrain-pack") as pool:
        futures = [pool.submit(work) for _ in range(threads)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()


class _Shard:
    """One shard of every copy, while it is made."""

    def __init__(
        self, source: Source, folder: PackingFolder, options: PackOptions, shard: int
    ) -> None:
        self._source = source
        self._folder = folder
        self._shard = shard
        self._quality = options.quality
        self._sides = options.copies
        self._rows: list[tuple[int, ...]] = []
        self._bad: list[Rejected] = []

    def make(self, resizer: Resizer, advance: Callable[[int], None], stop: threading.Event) -> None:
        """Write the files, then the record that they are complete; nothing once `stop` is set."""
        files = {name: ShardWriter(self._folder.shard(name, self._shard)) for name in self._sides}
        try:
            samples = self._folder.samples(self._shard)
            for first in range(0, len(samples), BATCH):
                if stop.is_set():
                    return
                batch = samples[first : first + BATCH]
                self._add(batch, resizer, files)
                advance(len(batch))
            for file in files.values():
                file.close()
            written = [(file.size, file.crc32) for file in files.values()]
            self._folder.record(self._shard, self._rows, written, self._bad)
        finally:
            for file in files.values():
                file.discard()

    def _add(self, samples: range, resizer: Resizer, files: dict[str, ShardWriter]) -> None:
        good: list[tuple[int, np.ndarray, Size]] = []
        for i in samples:
            try:
                encoded = self._source.read(i)
                good.append((i, encoded, image_size(encoded)))
            except (DataError, HeaderError) as error:
                self._bad.append(Rejected(i, str(error).removeprefix(f"{self._source.name(i)}: ")))
        copies = resizer([encoded for _i, encoded, _size in good], [size for *_, size in good])
        for (i, encoded, size), made in zip(good, copies, strict=True):
            if isinstance(made, str):
                self._bad.append(Rejected(i, made))
                continue
            row = [i, *size]
            for name, side in self._sides.items():
                small = made.get(side) if side is not None else None
                content = encoded.data if small is None else self._jpeg(small)
                offset = files[name].add(f"{i:09d}", content, int(self._source.labels[i]))
                row += [offset, len(content), zlib.crc32(content)]
            self._rows.append(tuple(row))

    def _jpeg(self, pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self._quality)
        return file.getvalue()
