"""The parts a report page is made of. Whatever is not `Html` is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from hvdtrain.report.plots import COLORS


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


DARK_COLORS = (
    *("#5ab0f5", "#ff9a56", "#4fc9ad", "#e58bc5", "#d8b545", "#9ed3f7", "#b3a1f0", "#a8b0bd"),
)
"""The runs' colours on a dark background, in the order of COLORS."""

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--panel:#f6f7f9;--ink:#1b1f24;--ink-2:#59616b;
--grid:#dfe3e8;--warn:#9a4a00;LIGHT}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--panel:#1c2026;--ink:#e6e9ed;
--ink-2:#a0a8b3;--grid:#333a43;--warn:#ffb070;DARK}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:78rem;padding:1rem clamp(.8rem,3vw,2rem) 3rem;background:var(--paper);
color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0 .2rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.2rem 0 .6rem;padding-bottom:.25rem;border-bottom:1px solid var(--grid)}
h3{font-size:1rem;margin:1.4rem 0 .4rem;overflow-wrap:anywhere}
p{margin:.35rem 0;max-width:60rem}
.quiet{color:var(--ink-2);font-size:.88rem}
.warn{color:var(--warn)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;margin:1rem 0}
.tile{background:var(--panel);border-radius:.5rem;padding:.55rem .8rem}
.tile b{display:block;font-size:1.3rem;font-weight:600;font-variant-numeric:tabular-nums}
.tile span{color:var(--ink-2);font-size:.84rem}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.3rem .9rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
thead th{color:var(--ink-2);font-weight:500;white-space:nowrap;vertical-align:bottom}
tbody th{font-weight:400;color:var(--ink-2);min-width:7rem}
th .label{display:inline-block;min-width:8.5rem}
td.n,th.n{text-align:right;white-space:nowrap}
td.text{overflow-wrap:anywhere;min-width:6rem}
td.text:last-child{min-width:12rem}
.scroll+.plots{margin-top:1rem}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1rem 1.5rem}
figure{margin:0;break-inside:avoid}
figcaption{font-size:.9rem}
figure svg{width:100%;height:auto;display:block}
figure svg text{font-family:inherit!important}
.key{position:sticky;top:0;background:var(--paper);padding:.4rem 0;display:flex;flex-wrap:wrap;
gap:.15rem 1.1rem;z-index:1;font-size:.9rem;overflow-wrap:anywhere}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.4em}
pre{background:var(--panel);border-radius:.5rem;padding:.7rem .9rem;overflow-x:auto;font-size:.8rem;
line-height:1.4}
details{margin:.6rem 0}
summary{cursor:pointer}
@media print{:root{color-scheme:light}body{font-size:11px;max-width:none;padding:0}
h2,h3,summary{break-after:avoid}tr,.tile,pre{break-inside:avoid}.key{position:static}
.scroll,pre{overflow:visible}table{font-size:9px}th,td{padding-right:.5rem}
thead th,td.n{white-space:normal}pre{white-space:pre-wrap}
.plots{grid-template-columns:repeat(2,1fr)}
details::details-content{content-visibility:visible;display:block}}
"""


def join(parts: Iterable[str]) -> Html:
    """Parts one after the other, escaped where they are not Html."""
    return Html("\n".join(_safe(part) for part in parts if part))


def tag(name: str, body: str, css: str = "") -> Html:
    """One element with its class."""
    attribute = f' class="{css}"' if css else ""
    return Html(f"<{name}{attribute}>{_safe(body)}</{name}>")


def dot(run: int) -> Html:
    """The mark of a run's colour."""
    return Html(f'<i class="dot" style="background:var(--run-{run % len(COLORS)})"></i>')


def run_label(index: int, text: str) -> Html:
    """A run's name behind its colour."""
    return tag("span", Html(dot(index) + tag("span", text)), "label")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> Html:
    """A table that scrolls by itself; `numbers`: columns set flush right. Empty without rows."""
    if not rows:
        return Html("")
    top = "".join(tag("th", cell, "n" if i in numbers else "") for i, cell in enumerate(head))
    lines = []
    for row in rows:
        cells = [tag("th", row[0])] if 0 not in numbers else [tag("td", row[0], "n")]
        cells += [
            tag("td", cell, "n" if i in numbers else "text") for i, cell in enumerate(row[1:], 1)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head_html = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    body = "".join(lines)
    return Html(f'<div class="scroll"><table>{head_html}<tbody>{body}</tbody></table></div>')


def tiles(pairs: Iterable[tuple[str, str]]) -> Html:
    """The few figures that matter most: value over name."""
    body = join(
        tag("div", Html(tag("b", value) + tag("span", name)), "tile") for name, value in pairs
    )
    return tag("div", body, "tiles")


def figure(svg: str, title: str, note: str) -> Html:
    """A plot with its title above it and what its lines mean."""
    text = tag("b", title) + (" " + tag("span", note, "quiet") if note else "")
    named = svg.replace("<svg ", f'<svg aria-label="{escape(title)}" ', 1)
    return Html(f"<figure><figcaption>{text}</figcaption>{named}</figure>")


def details(title: str, body: str, is_open: bool = False) -> Html:
    """What is long: folded, but for print."""
    return Html(
        f"<details{' open' if is_open else ''}><summary>{_safe(title)}</summary>{_safe(body)}</details>"
    )


def section(title: str, *parts: str) -> Html:
    """A heading and its parts; nothing where all parts are empty."""
    body = join(parts)
    return Html(f"<section><h2>{_safe(title)}</h2>{body}</section>") if body else Html("")


def page(title: str, body: Html) -> str:
    """The whole file. Its policy lets a browser fetch nothing and run nothing."""
    light = "".join(f"--run-{i}:{color};" for i, color in enumerate(COLORS))
    dark = "".join(f"--run-{i}:{color};" for i, color in enumerate(DARK_COLORS))
    style = _STYLE.replace("LIGHT", light).replace("DARK", dark)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _safe(text: str) -> str:
    return text if isinstance(text, Html) else escape(str(text))
