"""Write the lists of deviations in the headers of configs, and the tables at the end of docs/reference/recipes.md.

Both are made of `tests/golden/sources`: `python -m tests.golden.render_sources`, then check the diff.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from tests.golden.render import CONFIGS, FOLDER
from tests.golden.source_tables import Fact, Table, names, table, with_section

PAGE = FOLDER.parents[1] / "docs/reference/recipes.md"
BEGIN = "<!-- made by python -m tests.golden.render_sources -->"
NAMES = {
    "plan.epochs": "epochs",
    "plan.updates": "updates",
    "plan.steps": "updates an epoch",
    "plan.batch": "global batch",
    "plan.batch_per_worker": "images per worker",
    "plan.image_size": "training px",
    "plan.val_image_size": "evaluation px",
    "plan.val_resize": "evaluation short side, px",
    "plan.min_crop_area": "smallest crop area",
    "plan.rect_val": "rectangular validation",
    "plan.interpolation": "interpolation",
    "plan.lr": "rate",
    "plan.momentum": "momentum",
}
"""How the tables call the places of a plan."""


def section(of: Table) -> str:
    """Heading, sources and table of one config."""
    lines = [f"### {of.name}", ""]
    if of.parent is not None:
        lines += [f"As [{of.parent.name}](#{of.parent.name}), but for:", ""]
    lines += ["| setting | source | here | |", "|---|---|---|---|"]
    lines += [row(fact) for fact in of.facts]
    files = "; ".join(f"{_code(where)}" for where in of.files.values())
    lines += ["", f"Source: {files}." if files else "Source: the same."]
    if of.own:
        said = "; ".join(f"`{key}`: {why}" for key, why in of.own.items())
        lines += [f"Of no source: {said}."]
    return "\n".join(lines)


def row(fact: Fact) -> str:
    """One line of a table."""
    here = "; ".join(shown(place, value) for place, value in fact.here.items())
    cells = [fact.setting, fact.there, fact.differs or here, "stated" if fact.differs else "same"]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def shown(place: str, value: Any) -> str:
    """A place and its value as text."""
    if place == "header":
        return f"its header: `{value}`"
    if place not in NAMES:
        return f"`{place}: {plain(value)}`"
    if not isinstance(value, dict):
        return f"{NAMES[place]} {plain(value)}"
    if place in ("plan.lr", "plan.momentum"):
        return f"{NAMES[place]} {', '.join(f'{plain(v)} {when(t)}' for t, v in value.items())}"
    changes = [next(group) for _, group in itertools.groupby(value.items(), lambda pair: pair[1])]
    return f"{NAMES[place]} {', '.join(f'{plain(v)} from {t}' for t, v in changes)}"


def when(time: object) -> str:
    """A time of a table as text."""
    return f"before {str(time)[:-1]}" if str(time).endswith("-") else f"at {time}"


def plain(value: Any) -> str:
    """A value as a config writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def page(text: str) -> str:
    """The page with its tables made anew."""
    kept = text.partition(BEGIN)[0]
    return f"{kept}{BEGIN}\n\n" + "\n\n".join(section(table(name)) for name in names()) + "\n"


def _code(where: str) -> str:
    """`repository: file` at its revision; a paper as it is."""
    found = re.fullmatch(r"(\S+/\S+), (\S+), ([0-9a-f]{7})", where)
    return f"`{found[1]}: {found[2]}` at {found[3]}" if found else where


if __name__ == "__main__":
    for config in names():
        path = CONFIGS / f"{config}.yaml"
        path.write_text(with_section(path.read_text(encoding="utf-8"), table(config)), "utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), "utf-8")
