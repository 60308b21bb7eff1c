"""Brings weights from the Hugging Face hub into its cache on this machine, by its own library.

Where the cache is and whether the network may be used is what the library goes by: `HF_HOME`,
`HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`; who asks: `hf auth login`, `HF_TOKEN`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NamedTuple

from hvdtrain import activity
from hvdtrain.config.hub_address import HubAddress
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.models.hub_config import CONFIG, MAX_BYTES, PREPROCESSOR
from hvdtrain.models.hub_errors import reason, unreachable
from hvdtrain.models.weights_file import WHOLE_FILES, shards_of
from hvdtrain.models.weights_names import listed

MAX_WEIGHTS_BYTES = 2**35
"""Of all files of weights together. The largest classifiers of timm take 5 GB."""
TRIES_AFTER_S = (1.0, 3.0)
"""Pauses before the hub is asked again, if it cannot be reached or has a fault of its own."""
ANSWER_S = 10.0
MAX_RESTARTS = 3


class Fetched(NamedTuple):
    """What was taken of a repository."""

    repository: str
    file: Path
    """In the cache; of several parts their index."""
    revision: str
    """The commit."""
    sha256: str
    """Of `file`."""
    config: Path | None
    preprocessor: Path | None
    from_cache: str | None
    """Why the hub was not asked for the newest revision; None if it was."""


def fetch(address: HubAddress) -> Fetched:
    """The weights of a repository, downloaded unless they are in the cache.

    Raises ConfigError if the library is not installed, and CheckpointError, with what to do, if the
    weights cannot be had.
    """
    hub = _library(address)
    with _quiet():
        address = _with_tag(address)
        try:
            return _fetch(hub, address)
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001 - clients of the library raise many kinds
            raise CheckpointError(reason(hub, error, address)) from None


def _fetch(hub: ModuleType, address: HubAddress) -> Fetched:
    activity.enter(f"looking for {address.repository} on the hub")
    if re.fullmatch(r"[0-9a-f]{40}", address.revision or "") and (
        found := _cached(hub, address, None)
    ):
        return found
    for pause_s in (*TRIES_AFTER_S, None):
        try:
            info = hub.HfApi().model_info(
                address.repository, revision=address.revision, files_metadata=True, timeout=ANSWER_S
            )
            break
        except Exception as error:
            if (why := unreachable(hub, error)) is None:
                raise
            if found := _cached(hub, address, why):
                return found
            if pause_s is None or isinstance(error, hub.errors.OfflineModeIsEnabled):
                raise
            time.sleep(pause_s)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    name = next((name for name in WHOLE_FILES if name in sizes), None)
    if name is None:
        raise CheckpointError(
            f"the repository has none of {', '.join(WHOLE_FILES)}; it has {listed(sizes) or 'no files'}: "
            "download the one you mean, and name it"
        )

    def get(name: str, most: int) -> Path:
        return _download(hub, address, name, sizes.get(name, 0), most)

    file = get(name, MAX_WEIGHTS_BYTES)
    parts = shards_of(file) if name.endswith(".json") else []
    left = MAX_WEIGHTS_BYTES
    for part in parts:
        left -= get(part, left).stat().st_size
    about = [get(n, MAX_BYTES) if n in sizes else None for n in (CONFIG, PREPROCESSOR)]
    return _fetched(address, file, [file.with_name(part) for part in parts], about, None)


def _cached(hub: ModuleType, address: HubAddress, why: str | None) -> Fetched | None:
    """The weights as the cache has them; None unless all of their files are there."""

    def look(name: str) -> Path | None:
        path = hub.try_to_load_from_cache(address.repository, name, revision=address.revision)
        return Path(path) if isinstance(path, str) and Path(path).exists() else None

    file = next((path for path in map(look, WHOLE_FILES) if path), None)
    if file is None:
        return None
    parts = [look(part) for part in (shards_of(file) if file.suffix == ".json" else [])]
    if None in parts:
        return None
    about = [look(CONFIG), look(PREPROCESSOR)]
    return _fetched(address, file, [part for part in parts if part], about, why)


def _fetched(
    address: HubAddress,
    file: Path,
    parts: Sequence[Path],
    about: Sequence[Path | None],
    why: str | None,
) -> Fetched:
    activity.enter(f"checking {file.name}")
    own, *_others = [_intact(path) for path in (file, *parts)]
    commit = file.parent.name
    return Fetched(address.repository, file, commit, own, about[0], about[1], why)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex digits; shows that it goes on. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            activity.beat()
    return digest.hexdigest()


def _intact(path: Path) -> str:
    """The sha256 of a file in the cache, whose name there says it. Raises CheckpointError if they differ."""
    found, blob = sha256_of(path), path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and blob.name != found:
        raise CheckpointError(
            f"{path.name} is damaged in the cache, or cut off (its sha256 is {found[:12]}…): delete "
            f"{blob} and start again, with the network"
        )
    return found


def _download(hub: ModuleType, address: HubAddress, name: str, size: int, most: int) -> Path:
    def refuse(found: int) -> CheckpointError:
        return CheckpointError(f"{name} has {found:,} bytes or more, at most {most:,} are taken")

    if size > most:
        raise refuse(size)

    class Bar(_Bar):
        def update(self, n: float | None = 1) -> None:
            super().update(n)
            if self.n > most:
                raise refuse(int(self.n))
            if self.restarts > MAX_RESTARTS:  # the library would go on for ever
                raise CheckpointError(f"the download of {name} breaks off again and again")

    activity.enter(f"downloading {name} of {address.repository}", max(1, size >> 20), "MiB")
    path = hub.hf_hub_download(
        address.repository, name, revision=address.revision, tqdm_class=Bar, etag_timeout=ANSWER_S
    )
    return Path(path)


class _Bar:
    """Shows the library's progress as the present activity, in place of its own bars."""

    def __init__(self, *_: object, initial: float = 0, **_more: object) -> None:
        self.n = initial
        self.restarts = 0
        """How often the server began again instead of going on, so that what had come was dropped."""

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def update(self, n: float | None = 1) -> None:
        self.n += n or 0
        self.restarts += (n or 0) < 0
        activity.step(int(self.n) >> 20)

    def set_postfix_str(self, *_: object, **_more: object) -> None: ...

    def refresh(self, *_: object, **_more: object) -> None: ...

    def close(self) -> None: ...


def _library(address: HubAddress) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ConfigError(
            f"{address.text}: huggingface_hub cannot be imported ({error}): install it with "
            "`pip install huggingface_hub` (the extra hub), or name a file of weights"
        ) from None
    return huggingface_hub


def _with_tag(address: HubAddress) -> HubAddress:
    """The address with the tag that timm takes for its network by default, if it has none."""
    if not address.needs_tag:
        return address
    name = address.repository.partition("/")[2]
    try:
        from timm.models import get_pretrained_cfg  # type: ignore[import-not-found,unused-ignore]
    except (ImportError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"{address.text}: without timm ({type(error).__name__}) a tag must say which weights are meant, as "
            "in timm:resnet50.a1_in1k: add it, or `pip install timm`"
        ) from None
    try:
        tag = getattr(get_pretrained_cfg(name), "tag", None)
    except Exception:  # noqa: BLE001 - whatever it raises, timm does not know it
        tag = None
    if not tag:
        raise CheckpointError("timm knows no weights of that name: hf.co/timm lists them")
    return address._replace(repository=f"{address.repository}.{tag}", needs_tag=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings, some of which show addresses with keys in them."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
