"""The live page of a run: the figures that rank 0 has, as JSON, and the page that draws them."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.report.text import ABOVE_ONE
from hvdtrain.telemetry.endpoint import Page
from hvdtrain.telemetry.history import History, finite, rounded
from hvdtrain.telemetry.lost_time import CAUSES, LostTime
from hvdtrain.telemetry.meter import Interval
from hvdtrain.telemetry.reports import Eval, Kind, Note, Report, Train

LOW_EFFICIENCY = 0.8
"""Scaling efficiency below which the page warns."""
STARVED = 0.2
"""Share of the time spent waiting for images above which the page warns."""
QUIET_S, QUIET_INTERVALS = 60.0, 5.0
"""The page warns after QUIET_S seconds and QUIET_INTERVALS logging intervals without a report."""
FRESH_S = 600.0
"""The newest warning among the notes is shown at the top for this time."""
NOTES, TEXT = 20, 300
"""Number of notes kept, and most characters of a text."""

SET = ("time", "epoch", "phase", "image_size", "global_batch_size", "lr")
MEASURED = (
    *("images_per_second", "loss", "top1", "efficiency", "efficiency_ceiling"),
    *(f"lost_{cause}_ratio" for cause in CAUSES),
    *("data_wait_ratio", "comm_wait_ratio", "gradient_noise_scale"),
)
STATES: dict[Kind, str] = {
    **dict.fromkeys(("train", "eval", "checkpoint"), "training"),
    "stop": "stopped",
    "end": "ended",
}
"""State of the run after a report of this kind; other kinds do not change it."""
ENDED = ("stopped", "ended")
"""States in which no further report is expected."""
EVALUATED = ("loss", "top1", "top5")


class Live:
    """A sink for the reports of rank 0. Its `pages` are called in threads of the endpoint."""

    def __init__(
        self, name: str, model: str, hosts: list[str], clock: Callable[[], float] = time.time
    ) -> None:
        """`name` of the run, `hosts` [ranks]."""
        self._clock = clock
        self._began = clock()
        self._hosts = [_text(host) for host in hosts]
        self._run = {"name": _text(name), "model": _text(model)}
        self._lock = threading.Lock()
        self._state = "starting"
        self._reported = self._began
        self._latest: dict[Kind, dict[str, Any]] = {}
        self._newest: Train | None = None
        self._notes: deque[dict[str, Any]] = deque(maxlen=NOTES)
        self._train = History(SET, MEASURED)
        self._evals = History(("epoch",), EVALUATED)
        self._steps: tuple[Interval, LostTime | None] | None = None
        self._version = 0
        self._made = (-1, b"")
        self._html = _page()

    def pages(self) -> dict[str, Page]:
        """By path."""
        return {
            "/": lambda: ("text/html; charset=utf-8", self._html),
            "/api/live": lambda: ("application/json", self.json()),
        }

    def write(self, report: Report) -> None:
        """Take one report."""
        now, values = self._clock(), report.values()
        if isinstance(report, Train):
            seconds = finite(report.measured.seconds) or 1.0
            self._train.add({**values, "time": now - self._began}, seconds)
        elif isinstance(report, Eval):
            self._evals.add(values, 1.0)
        with self._lock:
            self._version += 1
            self._reported = now
            self._state = STATES.get(report.kind, self._state)
            if isinstance(report, Note):
                self._notes.append({"time": now, "text": _text(report.text)})
            else:
                self._latest[report.kind] = {**values, "time": now}
            if isinstance(report, Train):
                self._newest = report

    def observe_interval(self, interval: Interval, lost: LostTime | None) -> None:
        """Take the steps of all ranks since the last report; `lost` is None with one rank."""
        if interval.step_s.shape[1] == 0:
            return
        with self._lock:
            self._version += 1
            self._steps = interval, lost

    def json(self) -> bytes:
        """The answer of `/api/live`. Most of it is made once per report, however many clients ask."""
        with self._lock:
            version, reported, state = self._version, self._reported, self._state
            latest, notes, steps = dict(self._latest), list(self._notes), self._steps
            newest = self._newest
        made, body = self._made
        if made != version:
            body = _dump(
                {
                    "run": {**self._run, "ranks": len(self._hosts), "hosts": len({*self._hosts})},
                    "train": _values(latest.get("train")),
                    "eval": _values(latest.get("eval")),
                    "checkpoint": _values(latest.get("checkpoint")),
                    "ranks": {"host": self._hosts, **_ranks(steps)},
                    "notes": notes,
                    "history": self._train.columns(),
                    "evals": self._evals.columns(),
                }
            )
            self._made = version, body
        now = self._clock()
        quiet_s = now - reported if state not in ENDED else 0.0
        warning = next((n for n in reversed(notes) if n["text"].startswith("warning: ")), None)
        fresh = warning is not None and now - warning["time"] < FRESH_S
        alerts = _alerts(newest, self._hosts, quiet_s)
        alerts += [{"kind": "warning", "text": warning["text"]}] if warning and fresh else []
        head = _dump({"time": now, "reported": reported, "state": state, "alerts": alerts})
        return head[:-1] + b"," + body[1:]


def _alerts(train: Train | None, hosts: list[str], quiet_s: float) -> list[dict[str, str]]:
    """What needs attention now: kind and text, worst first. `train` is the newest report."""
    alerts = {}
    interval_s = finite(train.measured.seconds) if train else None
    if quiet_s > max(QUIET_S, QUIET_INTERVALS * (interval_s or 0.0)):
        alerts["quiet"] = (
            f"No report for {quiet_s:.0f} s: an evaluation or a checkpoint takes long, or a rank "
            "hangs."
        )
    if train is not None:
        efficiency, straggler = finite(train.scaling.efficiency), train.scaling.straggler
        if efficiency is not None and efficiency < LOW_EFFICIENCY:
            alerts["efficiency"] = f"Scaling efficiency is {efficiency:.0%}."
        if straggler is not None:
            alerts["straggler"] = f"All ranks wait for rank {straggler} on {hosts[straggler]}."
        starved = finite(train.measured.data_wait_ratio)
        if starved is not None and starved > STARVED:
            alerts["data"] = f"Ranks wait for images {starved:.0%} of the time."
    return [{"kind": kind, "text": text} for kind, text in alerts.items()]


def _ranks(steps: tuple[Interval, LostTime | None] | None) -> dict[str, list[float | None]]:
    """Mean seconds per step of every rank in the last interval."""
    if steps is None:
        return {}
    interval, lost = steps
    count = interval.step_s.shape[1]
    times = {
        "step_s": interval.step_s.mean(axis=1),
        "data_s": interval.data_s.mean(axis=1),
        "wait_s": interval.wait_s.mean(axis=1),
        "late_s": np.full(len(interval.step_s), np.nan) if lost is None else lost.late_s / count,
    }
    return {key: rounded(column) for key, column in times.items()}


def _values(report: dict[str, Any] | None) -> dict[str, Any] | None:
    """Numbers as they were reported, and texts of limited length; anything else becomes None."""
    if report is None:
        return None
    return {key: _text(v) if isinstance(v, str) else finite(v) for key, v in report.items()}


def _text(text: str) -> str:
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _dump(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _page() -> bytes:
    """The page as one file; it requests nothing except `/api/live`."""
    folder = Path(__file__).with_name("live_page")
    page = (folder / "live.html").read_text(encoding="utf-8")
    for name in ("live.css", "charts.js", "live.js"):
        page = page.replace(f"/* {name} */", (folder / name).read_text(encoding="utf-8"))
    return page.replace("/* ABOVE_ONE */", ABOVE_ONE).encode()
