"""The live page in headless Chromium, if it is installed."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hvdtrain.report.text import ABOVE_ONE
from hvdtrain.telemetry.lost_time import CAUSES as CAUSES_OF_LOSS
from hvdtrain.telemetry.reports import Eval, Note, Scaling
from tests.browser import CHROMIUM, Tab, opened
from tests.live_run import FakeRun
from tests.made_reports import TRAIN

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium in PATH")

WIDTHS = (360, 390, 768, 1400)
GAUGES = {
    "images/s": "hvdtrain_images_per_second",
    "efficiency": "hvdtrain_scaling_efficiency_ratio",
    "training loss": "hvdtrain_loss",
    "training top-1": "hvdtrain_top1_ratio",
    "validation top-1": "hvdtrain_val_top1_ratio",
    "validation loss": "hvdtrain_val_loss",
    "learning rate": "hvdtrain_learning_rate",
    "image size": "hvdtrain_image_size_pixels",
    "global batch": "hvdtrain_global_batch_images",
    "noise scale": "hvdtrain_gradient_noise_scale_images",
    "image wait": "hvdtrain_data_wait_ratio",
}
TILES = """Object.fromEntries([...document.querySelectorAll('.tile:not([hidden])')].map(
    tile => [tile.querySelector('span').innerText, [+tile.firstChild.value, tile.firstChild.innerText]]))"""
CAUSES = "[...document.querySelectorAll('#causes data')].map(data => +data.value)"
TILE = "[...document.querySelectorAll('.tile')][1].firstChild.innerText"
CELLS = "document.querySelectorAll('#strip button').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with opened(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab) -> Tab:
    browser.open("about:blank")
    browser.until("location.href === 'about:blank'")
    browser.size(1400, 1000)
    browser.complaints.clear()
    browser.requests.clear()
    return browser


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[FakeRun]:
    """A run with the test's number of ranks and 99 reports; in the last ones one rank is slow."""
    made = FakeRun(getattr(request, "param", 4))
    made.advance(99)
    yield made
    made.close()


def shown(tab: Tab, run: FakeRun) -> None:
    """Wait until the newest report is on the page."""
    tab.until(
        f"document.querySelector('#progress')?.innerText.includes('step {run.reports * 10:,} ')"
    )


def fetch(run: FakeRun, path: str) -> str:
    with urllib.request.urlopen(run.address + path, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def as_written(name: str, value: float) -> str:
    if "top-1" in name or name in ("efficiency", "image wait"):
        return f"{100 * value:.1f}%"
    if name == "image size":
        return f"{value:.0f} px"
    return (
        f"{value:,.0f}" if name in ("images/s", "global batch", "noise scale") else f"{value:.4g}"
    )


def test_its_numbers_are_those_of_the_endpoint(run: FakeRun, tab: Tab) -> None:
    tab.open(run.address)
    for _ in range(2):
        shown(tab, run)
        families = text_string_to_metric_families(fetch(run, "metrics"))
        metrics = {sample.name: sample.value for family in families for sample in family.samples}
        train: dict[str, Any] = json.loads(fetch(run, "api/live"))["train"]
        tiles = tab.value(TILES)
        assert tiles.keys() == GAUGES.keys()
        for name, gauge in GAUGES.items():
            value, text = tiles[name]
            assert value == metrics[gauge], name
            assert text == as_written(name, value)
        causes = ("data", "communication", "straggling", "padding", "other")
        assert tab.value(CAUSES) == [train[f"lost_{cause}_ratio"] for cause in causes]
        assert tab.value(CAUSES) == [metrics[f"hvdtrain_lost_{cause}_ratio"] for cause in causes]
        assert tab.value("document.querySelector('#explanation').innerText") == train["explanation"]
        alerts = tab.value("[...document.querySelectorAll('#alerts li')].map(li => li.innerText)")
        assert "All ranks wait for rank 3 on node00." in alerts
        run.exporter.write(Eval(3.9, step=975, images=50000, loss=1.25, top1=0.625, top5=0.875))
        run.advance(100)  # the page updates by itself
    assert tab.complaints == []
    assert {*tab.requests} - {"about:blank"} == {run.address, run.address + "api/live"}


def test_an_efficiency_above_100_percent_comes_with_its_meaning(run: FakeRun, tab: Tab) -> None:
    tab.open(run.address)
    shown(tab, run)
    above = "document.querySelector('#above').innerText"
    assert tab.value(above) == ""
    for efficiency, shown_with in ((1.0004, ""), (1.05, f"* efficiency: {ABOVE_ONE}")):
        scaling = Scaling(efficiency, lost=dict.fromkeys(CAUSES_OF_LOSS, 0.0))
        run.exporter.write(replace(TRAIN, scaling=scaling))
        tab.until(f"{above} === {json.dumps(shown_with)} && {TILE} === '{efficiency:.1%}'")
    assert "efficiency *" in tab.value(TILES)
    assert tab.value("document.querySelector('#explanation').innerText") == ABOVE_ONE
    charts = "[...document.querySelectorAll('figcaption')].map(each => each.innerText).join()"
    assert f"105.0% ({ABOVE_ONE})" in tab.value(charts)
    assert tab.complaints == []


@pytest.mark.parametrize("run", [256], indirect=True)
def test_256_ranks(run: FakeRun, tab: Tab) -> None:
    tab.open(run.address)
    shown(tab, run)
    assert tab.value(CELLS) == 256
    latest = tab.value("document.querySelector('#rank').innerText")
    assert latest.startswith("rank 255 on node31: ")
    colors = """[0, 255].map(rank =>
        getComputedStyle(document.querySelectorAll('#strip button')[rank]).backgroundColor)"""
    calm, hot = tab.value(colors)
    assert calm != hot
    tab.value("document.querySelectorAll('#strip button')[77].click()")
    run.advance()
    shown(tab, run)
    step_s = json.loads(fetch(run, "api/live"))["ranks"]["step_s"][77]
    detail = tab.value("document.querySelector('#rank').innerText")
    assert detail.startswith(f"rank 77 on node09: {1000 * step_s:.3g} ms per step, ")
    assert tab.value("document.querySelectorAll('[aria-pressed=true]').length") == 1
    assert tab.value(CELLS) == 256
    assert tab.complaints == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("run", "plots"), [(1, 6), (4, 8)], indirect=["run"])
def test_it_fits_every_width(run: FakeRun, tab: Tab, plots: int, dark: bool) -> None:
    run.exporter.write(Note("warning: " + "a-long-word-" * 20))
    for width in WIDTHS:
        tab.size(width, 800, dark=dark)
        tab.open(run.address)
        shown(tab, run)
        tab.until(f"document.querySelectorAll('figure:not([hidden]) svg .line').length >= {plots}")
        seen = tab.value("""(() => {
            const boxes = [...document.querySelectorAll("figure:not([hidden]) svg")]
                .map(svg => svg.getBoundingClientRect());
            const root = document.documentElement;
            return {scroll: root.scrollWidth, width: root.clientWidth, plots: boxes.length,
                columns: new Set(boxes.map(box => box.left)).size,
                smallest: Math.min(...boxes.map(box => Math.min(box.width, box.height))),
                paper: getComputedStyle(document.body).backgroundColor};
        })()""")
        assert seen["scroll"] <= seen["width"] <= width, seen
        assert seen["plots"] == plots
        assert seen["columns"] == (1 if width < 700 else 2 if width < 1050 else 3)
        assert seen["smallest"] > 100
        assert seen["paper"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert tab.complaints == []


def test_texts_stay_texts(run: FakeRun, tab: Tab) -> None:
    evil = "<img src=x onerror=document.title='evil'><script>document.title='evil'</script>"
    run.live._hosts[3] = evil
    run.exporter.write(Note(f"warning: {evil}"))
    tab.open(run.address)
    shown(tab, run)
    assert evil in tab.value("document.querySelector('#notes').innerText")
    assert f"rank 3 on {evil}" in tab.value("document.querySelector('#rank').innerText")
    assert f"rank 3 on {evil}" in tab.value("document.querySelector('#alerts').innerText")
    assert tab.value("document.querySelectorAll('img').length") == 0
    assert "evil" not in tab.value("document.title")
    assert tab.complaints == []
    # The policy blocks requests to other addresses, and the console shows that.
    tab.value(f"void fetch('http://localhost:{run.exporter.endpoint.port}/metrics').catch(() => 0)")
    tab.until_complaint("Content Security Policy")


def test_a_hidden_page_sends_no_requests(run: FakeRun, tab: Tab) -> None:
    tab.open(run.address)
    shown(tab, run)
    tab.value("""Object.defineProperty(document, "hidden", {get: () => window.away, configurable: true});
        window.away = true; window.asked = 0;
        window.fetch = (real => (...all) => { window.asked++; return real(...all); })(window.fetch);""")
    run.advance()
    tab.value("void setTimeout(() => { window.waited = true; }, 1.5 * PERIOD_MS)")
    tab.until("window.waited")
    assert tab.value("window.asked") == 0
    tab.value("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    shown(tab, run)


def test_pointing_shows_values(run: FakeRun, tab: Tab) -> None:
    tab.open(run.address)
    shown(tab, run)
    tab.until("document.querySelector('figure svg .line') !== null")
    caption = "document.querySelector('figure figcaption').innerText"
    newest = tab.value(caption)
    tab.value("charts[0].point(charts[0].toX(seen.history.time[10]))")
    tenth = tab.value("seen.history.images_per_second[10]")
    assert f"images/s {tenth:,.0f}" in tab.value(caption).replace("\n", " ")
    tab.value("charts[0].svg.dispatchEvent(new PointerEvent('pointerleave'))")
    assert tab.value(caption) == newest


def test_the_end_is_shown(run: FakeRun, tab: Tab) -> None:
    tab.open(run.address)
    shown(tab, run)
    assert not tab.value("document.body.classList.contains('stale')")
    run.close()
    tab.until("document.body.classList.contains('stale')")
    said = tab.value("document.querySelector('#alerts').innerText")
    assert said.startswith("The run has ended or cannot be reached. The figures are from ")


def test_a_browser_sends_the_token_as_password(tab: Tab, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    run = FakeRun(2, token_file=str(token))
    try:
        run.advance(3)
        tab.open(run.address)
        tab.until("document.readyState === 'complete'")
        assert not tab.value("document.querySelector('#name')")
        tab.complaints.clear()
        tab.open(run.address.replace("//", "//anybody:s3cret@"))
        shown(tab, run)
        run.advance()
        shown(tab, run)
        assert tab.complaints == []
    finally:
        run.close()
