"""The last lines of a run: times after a resume, and an efficiency above 100 %."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hvdtrain.cli.results import summary_text
from hvdtrain.report.text import ABOVE_ONE, efficiency_text, exact_efficiency
from hvdtrain.telemetry.lost_time import CAUSES
from tests.made_reports import END


def test_a_run_of_one_attempt_has_one_line_of_times() -> None:
    text = summary_text(END.values())
    assert "time                60.5 s training, 70.0 s in total\n" in text
    assert "attempt" not in text


def test_after_a_resume_each_total_says_what_it_is_of() -> None:
    end = replace(END, attempts=3, attempt_train_seconds=5.25, run_wall_seconds=99.0)
    text = summary_text(end.values())
    assert "this attempt        5.2 s training, 70.0 s in total\n" in text
    assert (
        "all 3 attempts      60.5 s training, 99.0 s in total, without the pauses between them\n"
    ) in text


@pytest.mark.parametrize(("value", "bare"), [(1.0, True), (1.004, True), (1.006, False)])
def test_an_efficiency_above_100_percent_is_never_bare(value: float, bare: bool) -> None:
    assert efficiency_text(value) == (f"{value:.0%}" if bare else f"{value:.0%} ({ABOVE_ONE})")
    end = replace(END, scaling_efficiency=value, lost_time=dict.fromkeys(CAUSES, 0.0))
    assert f"scaling efficiency  {efficiency_text(value)}\n" in summary_text(end.values())


@pytest.mark.parametrize(("value", "bare"), [(1.00004, True), (1.0001, False)])
def test_nor_is_one_in_a_report(value: float, bare: bool) -> None:
    assert (ABOVE_ONE in exact_efficiency(value)) is not bare
