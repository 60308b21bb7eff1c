"""What a run was: its settings and what it ran on, as texts that can be compared with those of other runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from hvdtrain.config.fields import Kind
from hvdtrain.config.kinds import plain, settings
from hvdtrain.config.load import load_config
from hvdtrain.config.overrides import printable
from hvdtrain.config.schema import Config, Phase
from hvdtrain.errors import ConfigError
from hvdtrain.report.events import read_mapping, whole
from hvdtrain.report.run import RunRecord
from hvdtrain.run.recorded import About

RANKS, BATCH, TRAIN, VAL = "ranks", "global batch", "training images", "validation images"
CHANGED, NAME, SEED = "changed in mid-run", "name", "seed"
VIEWS = "train.val_views"
HASH = "hash "
"""Begins the value of images that are known by their fingerprint."""
PER_WORKER = re.compile(r"phases\.\d+\.batch_per_worker")
PARTS_OF_BATCH = re.compile(rf"train\.accumulate|{PER_WORKER.pattern}")
"""Settings whose product with the ranks is the global batch."""
_MOST, _DEEPEST = 1000, 5
"""Keys, and keys within keys, of a config that this version does not know."""


class Fact(NamedTuple):
    """One value. `setting`: tells groups apart. `machine`: only shown. `derived`: follows from settings."""

    kind: Literal["setting", "machine", "derived", "name"]
    value: str


class Facts(NamedTuple):
    """All of a run, by key."""

    seed: int | None
    values: dict[str, Fact]
    held_out: bool
    """Whether the validation images are a share of the training images, which depends on the seed."""
    fault: str = ""
    """Why the config is not that of this version; empty if it is."""


def facts_of(run: RunRecord, about: About) -> Facts:
    """Settings in the order of the schema, then ranks, batch and images, then what it ran on."""
    values, fault = _config(run)
    seed = values.pop(SEED, None)
    held_out = "data.val" in values and _is_number(values["data.val"].value)
    if "data.val" in values and not held_out:  # what is in it counts, not where it is
        values["data.val"] = Fact("machine", values["data.val"].value)
    values.pop("output", None)
    if NAME in values:
        values[NAME] = Fact("name", values[NAME].value)
    if not values:
        values["config"] = Fact("setting", f"not known ({run.label})")
    values |= _of_run(run)
    if batch := _batch(run, values):
        values[BATCH] = Fact("derived", batch)
    for key, kind in ((TRAIN, "train"), (VAL, "val")):
        if not held_out and (text := _images(about, kind, run)):
            values[key] = Fact("setting", text)
    values |= _machine(run)
    number = int(seed.value) if seed is not None and seed.value.isdecimal() else None
    return Facts(number, values, held_out, fault)


def _config(run: RunRecord) -> tuple[dict[str, Fact], str]:
    """The settings, and why this version does not take them as they are."""
    if not run.paths.config.is_file():
        return {}, "it has no config.yaml, so its settings are not known"
    try:
        found = settings(load_config(run.paths.config))
    except ConfigError as error:
        raw = itertools.islice(_leaves(read_mapping(run.paths.config), ""), _MOST)
        kinds = _kinds()
        values = {
            printable(key): Fact(_kind(kinds.get(re.sub(r"\.\d+\.", ".0.", key))), text)
            for key, text in raw
        }
        first = str(error).splitlines()[0]
        return values, f"this version cannot read its config, of which all is compared: {first}"
    return {
        each.key: Fact(_kind(each.kind), printable(plain(each.value, exact=True))) for each in found
    }, ""


def _kind(kind: Kind | None) -> Literal["setting", "machine"]:
    return "machine" if kind == "machine" else "setting"


def _kinds() -> dict[str, Kind]:
    """The kind of each field of this version, with the first phase for all."""
    return {each.key: each.kind for each in settings(Config(phases=[Phase(epochs=1)]))}


def _leaves(value: Any, key: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """The values of a mapping by their path. Nothing deep is followed: a file may contain itself."""
    if isinstance(value, dict) and depth < _DEEPEST:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{str(name)[:80]}".strip("."), depth + 1)
    elif isinstance(value, list) and value and isinstance(value[0], dict) and depth < _DEEPEST:
        for index, inner in enumerate(value[:100]):
            yield from _leaves(inner, f"{key}.{index}", depth + 1)
    elif isinstance(value, list):
        yield key, printable(f"[{', '.join(_scalar(each) for each in value[:20])}]")
    else:
        yield key, printable(_scalar(value))


def _scalar(value: Any) -> str:
    return "…" if isinstance(value, (dict, list)) else plain(value, exact=True)[:200]


def _of_run(run: RunRecord) -> dict[str, Fact]:
    found = {}
    sizes = [attempt.world_size for attempt in run.attempts]
    ranks = _in_turn(sizes if any(sizes) else [whole(run.environment, "world_size")])
    if ranks:
        found[RANKS] = Fact("setting", ranks)
    changed = [
        f"{change.get('setting')} {change.get('before')} → {change.get('after')}"
        for change in run.changes
        if change.get("kind") == "identity"
    ]
    if changed:
        found[CHANGED] = Fact("setting", printable("; ".join(changed)))
    return found


def _batch(run: RunRecord, values: dict[str, Fact]) -> str:
    """By the config, which also knows the phases to come; without one, as far as the run has come."""
    ranks = run.attempts[-1].world_size or whole(run.environment, "world_size")
    steps = values.get("train.accumulate")
    parts = [fact.value for key, fact in values.items() if PER_WORKER.fullmatch(key)]
    if ranks and steps and parts and all(text.isdecimal() for text in (steps.value, *parts)):
        return _in_turn(int(part) * int(steps.value) * ranks for part in parts)
    return _in_turn(whole(point.values, "global_batch_size") for point in run.train)


def _in_turn(values: Iterable[int | None]) -> str:
    """Such as `2`, or `2, then 4` for a run that went on with another number."""
    known = [value for value in values if value is not None]
    turns = [str(value) for value, _same in itertools.groupby(known)]
    return ", then ".join(turns[:4]) + (", …" if len(turns) > 4 else "")


def _images(about: About, kind: str, run: RunRecord) -> str:
    """Such as `hash 3fa9c1e2`, the beginning of that of names and labels; else the number of images."""
    accepted = "; changed in mid-run" if any(f"data.{kind}:" in t for t in about.accepted) else ""
    if mark := about.fingerprints.get(kind, ""):
        return printable(f"{HASH}{mark[:8]}") + accepted
    count = about.images.get(kind) or (validated(run) if kind == "val" else None)
    return "" if count is None else f"{count:,}{accepted}"


def validated(run: RunRecord) -> int | None:
    """Images of the last evaluation."""
    return whole(run.evals[-1].values, "images") if run.evals else None


def _machine(run: RunRecord) -> dict[str, Fact]:
    """Hosts, devices and versions, as `environment.json` has them."""
    about = run.environment
    versions = about.get("versions") if isinstance(about.get("versions"), dict) else {}
    device = about.get("device_name") or about.get("device")
    texts = {
        "host": about.get("host"),
        "nodes": _in_turn(attempt.nodes for attempt in run.attempts) or None,
        "device": device,
        "threads per rank": about.get("threads_per_rank"),
        "platform": about.get("platform"),
        **{f"version of {name}": value for name, value in (versions or {}).items()},
    }
    return {
        printable(key): Fact("machine", printable(value))
        for key, value in texts.items()
        if isinstance(value, (str, int))
    }


def _is_number(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False
