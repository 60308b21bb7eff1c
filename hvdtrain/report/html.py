"""The HTML of a report: fills `templates/`. jinja2 and markupsafe escape all text but Markup."""

from __future__ import annotations

import shlex
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hvdtrain.report import text
from hvdtrain.report.events import number
from hvdtrain.report.plots import COLORS
from hvdtrain.report.shares import percent

DARK_COLORS = (
    *("#5ab0f5", "#ff9a56", "#4fc9ad", "#e58bc5", "#d8b545", "#9ed3f7", "#b3a1f0", "#a8b0bd"),
)
"""The runs' colours on a dark background, in the order of COLORS."""


def fill(template: str, **values: object) -> str:
    """A template with these values. Raises jinja2.UndefinedError where it needs another one."""
    return _ENVIRONMENT.get_template(template).render(values)


def run_label(index: int, name: str) -> Markup:
    """A run's name behind its colour."""
    return Markup(
        '<span class="label"><i class="dot" style="background:var(--run-{})"></i>'
        "<span>{}</span></span>"
    ).format(index % len(COLORS), name)


def label_svg(svg: str, title: str) -> Markup:
    """One of our own `<svg>` elements, with its title for screen readers."""
    return Markup(svg).replace("<svg ", Markup('<svg aria-label="{}" ').format(title), 1)


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (text.count, text.duration, text.plain, text.progress, text.ratio, text.when):
        made.filters[write.__name__] = write
    made.filters |= {
        "number": number,
        "percent": percent,
        "command": lambda words: shlex.join(map(str, words)),
    }
    made.globals |= {"colors": {"light": COLORS, "dark": DARK_COLORS}, "missing": text.MISSING}
    return made


_ENVIRONMENT = _environment()
