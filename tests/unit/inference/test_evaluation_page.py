"""The page of an evaluation: figures by hand, many classes, and how a browser shows it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hvdtrain.cli.main import app
from hvdtrain.errors import ResourceError
from hvdtrain.inference.calibration import Bin, expected_calibration_error, reliability
from hvdtrain.inference.evaluation_page import CONFUSIONS, Mistake, render
from hvdtrain.inference.outcomes import Outcomes
from hvdtrain.inference.pictures import data_url
from tests import browser
from tests.unit.inference.conftest import SMALL

RESULT = {
    "top1": 0.5,
    "top5": 0.9,
    "loss": 1.25,
    "images": 4,
    "views": "one",
    "checkpoint": "runs/<b>x</b>",
    "warnings": ["a warning"],
}


def drawn(classes: int, images: int, right: float) -> Outcomes:
    """Random outcomes, of which about the share `right` is right."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, images)
    others = random.integers(0, classes, images)
    predicted = np.where(random.random(images) < right, labels, others)
    confidence = random.uniform(1 / classes, 1, images)
    return Outcomes(np.arange(images), labels, predicted, confidence)


def mistakes(count: int) -> list[Mistake]:
    picture = data_url(torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(0)), SMALL)
    return [Mistake(picture, f"DIR/val/{k}.png", "tabby", "lynx", 0.99) for k in range(count)]


def test_calibration_by_hand() -> None:
    confidence = np.array([0.95, 0.99, 0.6, 1 / 15, 1.0])
    right = np.array([True, False, True, False, True])
    bins = reliability(confidence, right)
    assert bins[0] == Bin(
        0, 1 / 15, 1, pytest.approx(1 / 15), 0.0
    )  # an upper edge belongs to its bin
    assert [one.images for one in bins] == [1, 1, 3]
    assert bins[2].accuracy == pytest.approx(2 / 3)
    expected = (1 / 15 + 0.4 + 3 * abs(2 / 3 - 0.98)) / 5
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_confusion_by_hand() -> None:
    outcomes = Outcomes(
        np.arange(4), np.array([0, 0, 2, 2]), np.array([0, 2, 2, 1]), np.array([0.5, 0.6, 0.7, 0.8])
    )
    assert outcomes.confusion(3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 1]]
    page = render(RESULT, outcomes, ["tabby", "lynx", "dog<script>"], mistakes(1))
    assert 'title="tabby → dog&lt;script&gt;: 50.0' in page
    assert "<script" not in page
    assert "runs/&lt;b&gt;x" in page
    assert "a warning" in page


def test_a_thousand_classes_make_a_page_of_their_worst() -> None:
    names = [f"class {k}" for k in range(1000)]
    page = render(RESULT, drawn(1000, 20_000, 0.7), names, mistakes(24))
    assert len(page) < 1_000_000
    assert 'class="matrix"' not in page
    assert "The other 970 classes" in page
    confusions = page.partition("Most frequent confusions")[2].partition("</table>")[0]
    assert confusions.count('data-name="images"') == CONFUSIONS


def test_eval_writes_the_page(run: Path, images: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    ended = CliRunner().invoke(app, ["eval", str(run), "--html", str(page), "--json"])
    assert ended.exit_code == 0, ended.output
    result = json.loads(ended.stdout)
    text = page.read_text()
    assert f"{100 * result['ece']:.2f}" in text
    assert f"{100 * result['top1']:.2f}" in text
    wrong = round(10 * (1 - result["top1"]))
    assert text.count("<img ") == wrong > 0
    assert str(images / "val") in text
    ended = CliRunner().invoke(app, ["eval", str(run), "--html", str(tmp_path / "no/page.html")])
    assert isinstance(ended.exception, ResourceError)
    assert "no/page.html: cannot be written" in str(ended.exception)


@pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("classes", [10, 1000])
def test_a_browser_shows_it(classes: int, tmp_path: Path) -> None:
    names = [f"a class with quite a long name {k}" for k in range(classes)]
    page = tmp_path / "page.html"
    page.write_text(render(RESULT, drawn(classes, 5000, 0.8), names, mistakes(9)))
    with browser.opened(tmp_path) as tab:
        for width in (390, 1100):
            tab.size(width, 900, dark=width == 390)
            tab.open(page.as_uri())
            tab.until("document.readyState === 'complete'")
            assert tab.value("document.documentElement.scrollWidth <= innerWidth")
            shown = "[...document.querySelectorAll('.cards img')].filter(i => i.naturalWidth > 0)"
            assert tab.value(f"{shown}.length") == 9
        assert tab.complaints == []
        assert all(url.startswith(("file:", "data:")) for url in tab.requests)
