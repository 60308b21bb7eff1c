"""What the sources of the published recipes say, setting by setting, and what our configs make of it.

`tests/golden/sources/NAME.yaml` belongs to `configs/NAME.yaml`:

    files:                      # where the facts are from: repository, file and revision, or a paper
      readme: fastai/imagenet-fast, cifar10/dawn_submission/README.md, 1bc5aee
    facts:
      - setting: weight decay
        there: --wd 1e-4        # the source's own value
        file: readme
        here: {optimizer.weight_decay: 1e-4}   # what must equal it: places, see `found`
        differs: …              # or how we differ and why; then `here` is what we have
        lacks: data.rotation=2  # a setting, or several, that would say it and that is not there yet
    own: {data.cache: …}        # settings of the config that no source has, with the reason

`same_as: OTHER` takes the facts of another table; those with the same `setting` are replaced.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Config
from hvdtrain.config.yaml_source import read_yaml
from hvdtrain.plan.epochs import Epoch, Plan, make_plan
from tests.golden.render import CONFIGS, FOLDER, WORLD_SIZES

TABLES = FOLDER / "sources"
OF_PLAN = {
    "plan.epochs": ("epochs",),
    "plan.updates": (),
    "plan.steps": (),
    "plan.batch": ("batch_per_worker",),
    "plan.batch_per_worker": ("batch_per_worker",),
    "plan.image_size": ("image_size",),
    "plan.val_image_size": ("val_image_size",),
    "plan.val_resize": (),
    "plan.min_crop_area": ("min_crop_area",),
    "plan.rect_val": ("rect_val",),
    "plan.interpolation": ("interpolation",),
    "plan.lr": ("lr",),
    "plan.momentum": ("momentum",),
}
"""Places in the plan, and the fields of phases that they are computed from."""


@dataclass(frozen=True)
class Fact:
    """One setting of a source."""

    setting: str
    there: str
    """The source's own value."""
    file: str
    """Key of `Table.files`."""
    here: dict[str, Any] = field(default_factory=dict)
    """Place → value that it must have."""
    differs: str = ""
    """How the config differs, and why; empty: it does not."""
    lacks: tuple[str, ...] = ()
    """KEY=VALUE that would end the difference, and that no config can say yet."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Fact:
        """From a line of a table."""
        lacks = values.get("lacks", ())
        several = (lacks,) if isinstance(lacks, str) else tuple(lacks)
        found = cls(**{**values, "there": str(values["there"]), "lacks": several})
        assert found.here or found.differs, f"{found.setting}: neither here nor differs"
        assert found.differs or not found.lacks, f"{found.setting}: lacks needs differs"
        return found


@dataclass(frozen=True)
class Table:
    """All that is known of the source of one config."""

    name: str
    files: dict[str, str]
    facts: tuple[Fact, ...]
    """Its own, without those of `parent`."""
    parent: Table | None
    own: dict[str, str]
    """Settings of the config that no source has → why."""

    @property
    def all_facts(self) -> dict[str, Fact]:
        """By setting, those of the parent included."""
        above = self.parent.all_facts if self.parent else {}
        return {**above, **{fact.setting: fact for fact in self.facts}}

    @property
    def all_own(self) -> dict[str, str]:
        """`own`, with that of the parent."""
        return {**(self.parent.all_own if self.parent else {}), **self.own}

    @property
    def deviations(self) -> list[str]:
        """Its own, in their order; those of the parent hold as well."""
        return [fact.differs for fact in self.facts if fact.differs]


def names() -> list[str]:
    """The configs that have a table."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


@cache
def table(name: str) -> Table:
    """The table of a config."""
    loaded = yaml.safe_load((TABLES / f"{name}.yaml").read_text(encoding="utf-8"))
    parent = table(loaded["same_as"]) if "same_as" in loaded else None
    facts = tuple(Fact.of(values) for values in loaded["facts"])
    return Table(name, loaded.get("files", {}), facts, parent, loaded.get("own", {}))


def config_of(name: str) -> tuple[Config, Plan]:
    """The resolved config, and its plan at the size of its source."""
    cfg = load_config(CONFIGS / f"{name}.yaml")
    return cfg, make_plan(cfg, WORLD_SIZES[name])


def found(cfg: Config, plan: Plan, place: str, wanted: Any) -> Any:
    """What is at `place`, in the shape of `wanted`.

    A key such as `optimizer.momentum`; or a place of `OF_PLAN`, with one value that all epochs have, or
    a mapping of times in epochs: `6` is the beginning of epoch 6, `6-` what the epoch before leads to.
    """
    if not place.startswith("plan."):
        value: Any = cfg.model_dump()
        for part in place.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        return value
    if place in ("plan.epochs", "plan.updates"):
        return len(plan.epochs) if place == "plan.epochs" else plan.total_steps
    if isinstance(wanted, dict):
        return {time: at(cfg, plan, place, str(time)) for time in wanted}
    values = [of_epoch(cfg, epoch, place, float(epoch.index)) for epoch in plan.epochs]
    return values[0] if all(value == values[0] for value in values) else values


def at(cfg: Config, plan: Plan, place: str, time: str) -> Any:
    """The value of `place` at a time."""
    before, t = time.endswith("-"), float(time.rstrip("-"))
    index = math.ceil(t) - 1 if before else math.floor(t)
    return of_epoch(cfg, plan.epochs[min(index, len(plan.epochs) - 1)], place, t)


def of_epoch(cfg: Config, epoch: Epoch, place: str, t: float) -> Any:
    """The value of `place` in an epoch, at `t` epochs since the start."""
    what = place.removeprefix("plan.")
    if what == "lr":
        return epoch.lr_at(t)
    if what == "momentum":
        return epoch.momentum_at(t)
    if what == "batch":
        return epoch.global_batch_size
    if what == "val_resize":  # as `centre_crop` of pipelines/images/augment.py
        return round(epoch.val_image_size / cfg.data.val_crop_ratio)
    return getattr(epoch, what)


def same(value: Any, wanted: Any) -> bool:
    """Whether two values are equal; numbers to five digits, as tables round them."""
    if isinstance(wanted, dict):
        return all(same(value[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list) and isinstance(value, list):
        return len(value) == len(wanted) and all(map(same, value, wanted))
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (value, wanted))
    return math.isclose(value, wanted, rel_tol=1e-5) if numbers else value == wanted


def settings_of(name: str) -> set[str]:
    """The keys that a config and the files it extends set, without `name` and the dataset's sizes.

    Those of phases have no number: `phases.image_size`.
    """
    data = read_yaml(CONFIGS / f"{name}.yaml").data
    keys = settings_of(Path(data["extends"]).stem) if "extends" in data else set()
    for section, values in data.items():
        for part in values if isinstance(values, list) else [values]:
            if isinstance(part, dict) and section != "expected":
                keys |= {f"{section}.{key}" for key in part}
    return keys


def is_explained(key: str, of: Table) -> bool:
    """Whether a fact or a reason speaks of a setting of the config."""
    places = {place for fact in of.all_facts.values() for place in fact.here}
    section, _, rest = key.partition(".")
    if section == "lr" and "plan.lr" in places:
        return rest != "cycle_momentum" or "plan.momentum" in places
    if section == "phases":
        of_plan = {name for place in places for name in OF_PLAN.get(place, ())}
        return rest in of_plan or any(re.fullmatch(rf"phases\.\d+\.{rest}", p) for p in places)
    if key == "data.val_crop_ratio" and "plan.val_resize" in places:
        return True
    return key in of.all_own or any(f"{place}.".startswith(f"{key}.") for place in places)


def section_of_header(of: Table) -> list[str]:
    """The lines of the config's header that list what differs."""
    first = "# Differs from its source"
    if of.parent is not None:
        above = of.parent.all_facts
        replaced = [f.setting for f in of.facts if f.setting in above and above[f.setting].differs]
        first += f" as {of.parent.name}.yaml says"
        first += f", but for: {', '.join(replaced)}; and" if replaced else ", and"
        if not of.deviations:
            return [f"{first.removesuffix(', and')}."]
        return [*_wrapped(f"{first}:", ""), *_bullets(of.deviations)]
    return [f"{first}:", *_bullets(of.deviations)] if of.deviations else [f"{first} in nothing."]


def header_without_section(text: str) -> tuple[list[str], str]:
    """The lines of a config's header but those of `section_of_header`, and the rest of the file."""
    lines = text.splitlines(keepends=True)
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    kept: list[str] = []
    inside = False
    for line in lines[:count]:
        inside = line.startswith("# Differs from its source") or (
            inside and line.startswith(("# - ", "#   "))
        )
        if not inside:
            kept.append(line.rstrip("\n"))
    return kept, "".join(lines[count:])


def with_section(text: str, of: Table) -> str:
    """A config whose header ends with the list of its table."""
    kept, rest = header_without_section(text)
    return "\n".join([*kept, *section_of_header(of)]) + "\n" + rest


def _bullets(texts: list[str]) -> list[str]:
    return [line for text in texts for line in _wrapped(text)]


def _wrapped(text: str, start: str = "# -") -> list[str]:
    """Lines of at most 112 characters; all but the first are indented."""
    lines, current = [], start
    for word in text.split():
        if len(current) + 1 + len(word) > 112:
            lines.append(current)
            current = "#  "
        current = f"{current} {word}".lstrip()
    return [*lines, current]
