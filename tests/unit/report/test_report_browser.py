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
from tests.report_runs import restarted

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
