"""The report page: complete, self-contained, and safe with any names in a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hvdtrain.errors import ResourceError
from hvdtrain.report import plots as report_plots
from hvdtrain.report.figures import Prices
from hvdtrain.report.run import read_run
from hvdtrain.report.targets import Target
from hvdtrain.report.write import write_report
from tests.launch import REPOSITORY
from tests.report_runs import Log, restarted
from tests.unit.report.report_page import assert_fetches_nothing, assert_references_hold, read

MALICIOUS = "<script>alert('x')</script> $\\frac{$ & \"quoted\" _"


def malicious(root: Path) -> Log:
    log = restarted(root)
    log.write(2030, "note", text=f"warning: {MALICIOUS}")
    log.train(2100, 50, **{f"{MALICIOUS}_ratio": 0.5}, gradient_norm=1.0)
    log.train(2110, 60, gradient_norm=900.0, gradient_noise_scale=512.0)
    log.write(2111, "checkpoint", path=MALICIOUS, seconds=1, step=60)
    (root / "config.yaml").write_text(json.dumps({"name": MALICIOUS}))
    log.json(
        "environment.json",
        {MALICIOUS: MALICIOUS, "versions": {MALICIOUS: "1"}, "command": [MALICIOUS, "train"]},
    )
    bad = {"index": 1, "name": MALICIOUS, "reason": "<b>", "detail": MALICIOUS}
    (root / "bad_samples.jsonl").write_text(json.dumps(bad) + "\n{damaged\n")
    return log


def test_the_page_of_one_run(tmp_path: Path) -> None:
    restarted(tmp_path / "run")
    output = tmp_path / "report.html"
    write_report(
        [tmp_path / "run"],
        output,
        targets=[Target("top1", 0.75), Target("top5", 0.999), Target("loss", 0.3)],
        prices=Prices(24.48, 7.3),
    )
    text, page = read(output)
    assert_fetches_nothing(text, page)
    assert_references_hold(page)
    words = page.text.replace("\N{NO-BREAK SPACE}", " ")
    node_hours = (2 * 42 + 4 * 44) / 3600
    for expected in (
        "80.00 %",
        "top-1 ≥ 75 %",
        "17 min 12 s",  # 2022 - 990
        "top-5 ≥ 99.9 %",
        "not reached, best 99.00 %",
        "loss ≤ 0.3",
        f"${node_hours * 24.48:.2f}",
        f"${node_hours * 7.3:.3f}",
        "15 min 48 s",  # paused
        "resumed from e1",
        "2 written in 1.0 s",
        "No plan: the run directory has no config.yaml.",
        "share of time",
        "data wait 10.0 %",
    ):
        assert expected in words, expected
    assert page.tags.count("svg") == 5 + 2 + 1 + 2
    assert "Gradients" not in words


def test_names_and_notes_of_a_run_are_escaped(tmp_path: Path) -> None:
    malicious(tmp_path / "<i>run")
    output = tmp_path / "report.html"
    png = tmp_path / "png"
    runs = [tmp_path / "<i>run", malicious(tmp_path / "_$x^$").root]
    write_report(runs[:1], output)
    text, page = read(output)
    assert_fetches_nothing(text, page)
    assert_references_hold(page)
    assert "<script" not in text
    assert page.text.count(MALICIOUS) >= 8
    assert "<i>run: 1 damaged line left out." in page.text
    for expected in ("Gradients", "gradient norm", "gradient noise scale (images)"):
        assert expected in page.text
    write_report(runs, output, png=png)
    assert_fetches_nothing(*read(output))
    assert all(path.parent == png for path in png.rglob("*"))


def test_several_runs_side_by_side(tmp_path: Path) -> None:
    first, second = restarted(tmp_path / "first").root, Log(tmp_path / "second")
    second.train(10, 10, image_size=64, loss=1.5)
    second.eval(12, 10, 0.9)
    output, png = tmp_path / "report.html", tmp_path / "png"
    found = write_report([first, second.root, first], output, [Target("top1", 0.75)], png=png)
    assert [run.run for run in found] == ["first", "second"]
    assert [run.finished for run in found] == [True, False]
    text, page = read(output)
    assert_fetches_nothing(text, page)
    assert_references_hold(page)
    assert "2 runs compared" in page.text
    for color in ("var(--run-0)", "var(--run-1)"):
        assert sum(color in svg for svg in text.split("<svg")[1:]) >= 7
    pictures = sorted(png.glob("*.png"))
    assert len(pictures) == page.tags.count("svg")
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert picture.stat().st_size > 5000


def test_curves_hold_the_points_of_the_run(tmp_path: Path) -> None:
    run = read_run(restarted(tmp_path).root)
    plots = {p.stem: p for _title, found in report_plots.sections([run], []) for p in found}
    accuracy = plots["accuracy-wall-time"].series[0]
    assert [x * 60 for x in accuracy.xs] == pytest.approx([1021 - 990, 2022 - 990])
    assert accuracy.ys == [0.5, 0.8]
    assert plots["accuracy-training-time"].series[0].xs == [20.0, 40.0]
    assert plots["accuracy-samples"].series[0].xs == [0.2, 0.4]
    assert plots["accuracy-epochs"].series[0].xs == [1.0, 2.0]
    assert plots["image-size"].series[0].ys == [32, 32, 32, 64]


def test_a_long_curve_is_thinned_by_means(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in range(1, 2402):
        log.train(1000 + step, 10 * step, loss=float(step % 2), lr=1.0)
    plots = report_plots.sections([read_run(tmp_path)], [])
    (curve,) = next(p for _t, found in plots for p in found if p.stem == "loss").series
    assert len(curve.xs) == -(-2401 // 13)
    assert curve.ys[:2] == pytest.approx([7 / 13, 6 / 13])
    assert curve.xs[0] == pytest.approx(7 * 0.5)


def test_error_if_an_output_cannot_be_written(tmp_path: Path) -> None:
    root = restarted(tmp_path / "run").root
    with pytest.raises(ResourceError, match="cannot be written"):
        write_report([root], root / "events.jsonl" / "report.html")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_report([root], tmp_path / "report.html", png=root / "events.jsonl")


def test_the_noise_scale_says_how_large_a_batch_is_useful(tmp_path: Path) -> None:
    log = restarted(tmp_path / "run")
    advice = {"recommended_batch": 1310, "batch": 1024, "doubling_steps": 0.719}
    for given, shown in (
        ({**advice, "doubling_images": 1.439}, True),
        (advice, False),
        (None, False),
        ("damaged", False),
    ):
        log.json("summary.json", {"noise_scale": given})
        write_report([tmp_path / "run"], tmp_path / "report.html")
        words = read(tmp_path / "report.html")[1].text
        expected = "1,310; twice the batch of 1,024 would take 0.72× the steps and 1.44× the images"
        assert (expected in words) is shown
        assert ("batch by the noise scale" in words) is shown


def test_its_templates_are_installed() -> None:
    declared = "".join((REPOSITORY / name).read_text() for name in ("setup.py", "pyproject.toml"))
    assert "report/templates/*" in declared
    found = {path.name for path in (REPOSITORY / "hvdtrain").glob("report/templates/*")}
    assert found == {
        "report.html",
        "report.css",
        "details.html",
        "parts.html",
        "study.html",
        "evaluation.html",
        "predictions.html",
        "head.html",
    }
