"""The report in headless Chromium, if it is installed: no errors, no overflow."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hvdtrain.report.figures import Prices
from hvdtrain.report.targets import Target
from hvdtrain.report.write import write_report
from tests.browser import opened
from tests.report_runs import Log, restarted

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium in PATH")

WIDTHS = (360, 768, 1400)
HARNESS = """<!DOCTYPE html><title>waits</title>
%s
<script>
function look(frame) {
  const page = frame.contentDocument, root = page.documentElement;
  const boxes = [...page.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect());
  const line = page.querySelector("figure svg path[clip-path][style*='--run-0']");
  return {
    scroll: root.scrollWidth, width: root.clientWidth, plots: boxes.length,
    smallest: Math.min(...boxes.map(box => Math.min(box.width, box.height))),
    widest: Math.max(...boxes.map(box => box.right)),
    stroke: getComputedStyle(line).stroke, text: page.body.innerText,
  };
}
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(look);
  document.body.replaceChildren();
  document.body.textContent = JSON.stringify(found);
};
</script>"""


def visit(page: Path, folder: Path, *options: str) -> tuple[str, list[str]]:
    """The loaded document, and the messages of the console."""
    assert CHROMIUM is not None
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    line += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", *options, page.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, re.findall(r".*CONSOLE.*", done.stderr)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    runs = [restarted(root / name).root for name in ("short", "a-rather-long-name-of-a-run-" * 3)]
    targets = [Target("top1", 0.75), Target("top1", 0.93)]
    write_report(runs, root / "report.html", targets, Prices(24.48, 7.3))
    return root / "report.html"


def test_the_console_is_silent(report: Path, tmp_path: Path) -> None:
    document, console = visit(report, tmp_path)
    assert "2 runs compared" in document
    assert console == []
    broken = tmp_path / "broken.html"
    broken.write_text(report.read_text().replace("</body>", "<script>1</script></body>"))
    assert visit(broken, tmp_path)[1], (
        "the console must show that the page's policy blocks a script"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_width(report: Path, tmp_path: Path, scheme: str) -> None:
    text = html.escape(report.read_text())
    frames = "".join(f'<iframe width={w} height=800 srcdoc="{text}"></iframe>' for w in WIDTHS)
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS % frames)
    number = {"dark": 0, "light": 1}[scheme]
    document, console = visit(harness, tmp_path, f"--blink-settings=preferredColorScheme={number}")
    assert console == []
    body = re.search(r"<body>(.*)</body>", document, flags=re.DOTALL)
    assert body is not None
    found = json.loads(html.unescape(body[1]))
    assert len(found) == len(WIDTHS)
    for width, seen in zip(WIDTHS, found, strict=True):
        assert seen["scroll"] <= seen["width"] <= width, seen
        assert seen["plots"] >= 9
        assert seen["smallest"] > 100
        assert seen["widest"] <= width
        assert "not reached" in seen["text"]
        assert seen["stroke"] == {"light": "rgb(0, 104, 181)", "dark": "rgb(90, 176, 245)"}[scheme]


OUTSIDE = """(() => {
    const width = document.documentElement.clientWidth;
    return [...document.querySelectorAll("body *")]
        .filter(e => !e.closest("pre") && e.getClientRects().length)
        .filter(e => e.getBoundingClientRect().right > width + 0.5 || e.getBoundingClientRect().left < -0.5)
        .map(e => `${e.tagName} ${e.textContent.slice(0, 40)}`);
})()"""
CELLS = "[...document.querySelectorAll('td')].map(cell => cell.dataset.name ?? '')"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out(tmp_path: Path, width: int) -> None:
    log = Log(tmp_path / "run")
    causes = ("data", "communication", "straggling", "padding", "other")
    shares = {f"lost_{cause}_ratio": 0.123 for cause in causes} | {"comm_wait_ratio": 0.2}
    for step, size in ((10, 128), (20, 160), (30, 192), (40, 224)):
        log.train(1000 + step, step, image_size=size, global_batch_size=1048576, **shares)
    log.eval(1050, 40, 0.8)
    log.write(1051, "checkpoint", path="e2", seconds=0.5, step=40)
    write_report([log.root], tmp_path / "report.html")
    with opened(tmp_path) as tab:
        tab.size(width, 900)
        tab.open((tmp_path / "report.html").as_uri())
        tab.until(
            "document.readyState === 'complete' && document.querySelector('.legend') !== null"
        )
        assert tab.value(OUTSIDE) == []
        assert tab.value("document.querySelectorAll('.legend > span').length") == 6
        boxes = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
        assert set(tab.value(boxes)) == {0}
        assert {"lost other", "images/s"} <= set(tab.value(CELLS))
        shown = (
            "getComputedStyle(document.querySelector('td[data-name=epochs]'), '::before').content"
        )
        assert tab.value(shown) == ('"epochs"' if width == 390 else "none")
        assert tab.complaints == []
