"""The figures of the live page, and which ranks serve it."""

from __future__ import annotations

import json
import math
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.telemetry.history import LIMIT
from hvdtrain.telemetry.live import FRESH_S, NOTES, QUIET_INTERVALS, QUIET_S, Live
from hvdtrain.telemetry.meter import BadCounts, Interval
from hvdtrain.telemetry.prometheus import Exporter
from hvdtrain.telemetry.reports import Eval, Note
from tests.launch import REPOSITORY
from tests.live_run import FakeRun
from tests.made_reports import END, MEASURED, train

Open = Callable[..., FakeRun]


@pytest.fixture
def fake_run() -> Iterator[Open]:
    """Makes runs that report but do not train."""
    made: list[FakeRun] = []

    def make(ranks: int, **metrics: Any) -> FakeRun:
        made.append(FakeRun(ranks, **metrics))
        return made[-1]

    yield make
    for one in made:
        one.close()


def strict(text: bytes) -> Any:
    """Standard JSON, without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def get(address: str, method: str = "GET") -> tuple[Any, bytes]:
    """Headers and body."""
    request = urllib.request.Request(address, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers, answer.read()


def status(address: str, method: str = "GET") -> int:
    """Status of an error answer."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(address, method)
    with caught.value as answer:
        return answer.code


def test_a_run_before_its_first_report() -> None:
    live = strict(Live("run-1", "resnet50", ["a", "b", "b"]).json())
    assert live["run"] == {"name": "run-1", "model": "resnet50", "ranks": 3, "hosts": 2}
    assert live["state"] == "starting"
    assert live["train"] is live["eval"] is live["checkpoint"] is None
    assert live["ranks"] == {"host": ["a", "b", "b"]}
    assert live["alerts"] == live["notes"] == live["history"]["loss"] == []


def test_one_rank_has_no_efficiency(fake_run: Open) -> None:
    run = fake_run(1)
    run.advance(3)
    live = strict(run.live.json())
    assert live["history"]["efficiency"] == live["history"]["lost_data_ratio"] == [None] * 3
    assert live["ranks"]["late_s"] == [None]
    assert live["ranks"]["step_s"][0] > 0.2
    assert live["alerts"] == []


def test_it_shows_what_was_reported(fake_run: Open) -> None:
    run = fake_run(4)
    run.advance(99)
    _, body = get(run.address + "api/live")
    live = strict(body)
    assert live["state"] == "training"
    assert live["train"]["straggler"] == 3
    assert live["train"]["explanation"].endswith(
        "waiting for rank 3 on node00, which computes slowly"
    )
    shares = [
        live["train"][f"lost_{c}_ratio"]
        for c in ("data", "communication", "straggling", "padding", "other")
    ]
    assert sum(shares) == pytest.approx(1 - live["train"]["efficiency"])
    assert len(live["evals"]["top1"]) == 3
    assert live["eval"]["top1"] == pytest.approx(live["evals"]["top1"][-1], rel=1e-5)
    assert {len(column) for column in live["history"].values()} == {99}
    assert live["history"]["epoch"][-1] == pytest.approx(99 / 25)
    assert live["history"]["loss"][-1] == pytest.approx(live["train"]["loss"], rel=1e-5)
    assert live["history"]["efficiency"][-1] == pytest.approx(live["train"]["efficiency"], rel=1e-5)
    ranks = live["ranks"]
    assert int(np.argmax(ranks["late_s"])) == 3
    assert ranks["late_s"][3] == pytest.approx(0.06, abs=0.03)
    assert ranks["step_s"] == pytest.approx([live["train"]["step_seconds"]] * 4, rel=0.05)
    for key in ("data", "wait"):
        mean = np.mean(ranks[f"{key}_s"]) / live["train"]["step_seconds"]
        name = {"data": "data_wait_ratio", "wait": "comm_wait_ratio"}[key]
        assert mean == pytest.approx(live["train"][name], rel=1e-3)


def test_it_is_strict_json_whatever_is_reported() -> None:
    live = Live("run", "model", ["host\ud800", 'a"b</script>'])
    bad = {"loss": math.nan, "epoch": math.inf, "lr": np.float32(-math.inf), "loss_scale": None}
    live.write(train(**bad, momentum=[1], seconds=math.nan, explanation="\x00\udcff"))
    live.write(Eval(epoch=1.0, step=1, images=1, loss=math.nan, top1=math.inf, top5=0.5))
    nothing, empty = np.full((2, 1), np.nan), np.zeros((2, 0))
    for array in (nothing, empty):
        live.observe_interval(
            Interval(MEASURED, BadCounts(0, 0), False, [], *[array] * 5),
            None,
        )
    found = strict(live.json())
    for key in ("loss", "epoch", "lr", "loss_scale", "momentum"):
        assert found["train"][key] is None
    assert found["ranks"]["step_s"] == [None, None]
    assert found["ranks"]["host"] == ["host?", 'a"b</script>']


def test_it_stays_small(fake_run: Open) -> None:
    run = fake_run(256)
    run.live._hosts = [f"{rank:063}" for rank in range(256)]  # the longest host name
    for number in range(200):
        run.exporter.write(Note(f"warning: {number} " + "\x01" * 5000))
    sizes = []
    for _ in range(3):
        run.advance(LIMIT)
        found = run.live.json()
        sizes.append(len(found))
    assert max(sizes) < 200_000
    live = strict(found)
    assert len(live["notes"]) == NOTES
    assert live["notes"][-1]["text"].startswith("warning: 199 ")
    assert len(live["ranks"]["late_s"]) == 256
    assert all(len(column) <= LIMIT for column in live["history"].values())


def test_alerts_come_and_go() -> None:
    now = [1000.0]
    live = Live("run", "model", ["a", "b"], clock=lambda: now[0])

    def kinds() -> list[str]:
        return [alert["kind"] for alert in strict(live.json())["alerts"]]

    well = {"seconds": 5.0, "efficiency": 0.81, "straggler": None, "data_wait_ratio": 0.19}
    for changed, kind in (
        ({"efficiency": 0.79}, "efficiency"),
        ({"straggler": 1}, "straggler"),
        ({"data_wait_ratio": 0.21}, "data"),
    ):
        live.write(train(**{**well, **changed}))
        assert kinds() == [kind]
        live.write(train(**well))
        assert kinds() == []
    now[0] += QUIET_S
    assert kinds() == []
    now[0] += 1
    assert kinds() == ["quiet"]
    live.write(train(**{**well, "seconds": 100.0}))  # long intervals are normal in this run
    now[0] += QUIET_INTERVALS * 100
    assert kinds() == []
    live.write(Note("resumed"))
    assert kinds() == []
    live.write(Note("warning: too large"))
    live.write(Note("another"))
    [alert] = strict(live.json())["alerts"]
    assert alert == {"kind": "warning", "text": "warning: too large"}
    now[0] += FRESH_S
    live.write(train(**well))
    assert kinds() == []
    live.write(END)
    now[0] += 10_000
    assert kinds() == []
    assert strict(live.json())["state"] == "ended"


def test_the_straggler_has_a_host() -> None:
    live = Live("run", "model", ["a", "b"])
    live.write(train(straggler=1))
    [alert] = strict(live.json())["alerts"]
    assert alert["text"] == "All ranks wait for rank 1 on b."


def test_it_is_made_once_for_all_clients() -> None:
    now = [0.0]
    live = Live("run", "model", ["a"], clock=lambda: now[0])
    live.write(train(loss=1.0))
    first = live.json()
    body = live._made[1]
    now[0] = 1.0
    second = live.json()
    assert live._made[1] is body
    assert (strict(first)["time"], strict(second)["time"]) == (0.0, 1.0)
    live.write(train(loss=2.0))
    assert strict(live.json())["train"]["loss"] == 2.0


def test_it_is_read_while_it_is_written() -> None:
    live = Live("run", "model", ["a"])
    stop = threading.Event()
    found: list[Any] = []

    def read() -> None:
        while not stop.is_set():
            found.append(strict(live.json()))

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(3 * LIMIT):
        live.write(train(loss=float(i), epoch=float(i), lr=float(i)))
    stop.set()
    thread.join()
    assert found
    for one in found:
        columns = [one["history"][key] for key in ("loss", "epoch", "lr")]
        assert len({len(column) for column in columns}) == 1
        assert columns[1] == columns[2]


def test_only_rank_0_has_the_page(fake_run: Open) -> None:
    run = fake_run(2)
    headers, page = get(run.address)
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert b"</html>" in page
    headers, _ = get(run.address + "api/live")
    assert headers["Content-Type"] == "application/json"
    other = Exporter(run.cfg, Solo())
    try:
        for path in ("", "api/live"):
            assert status(f"http://127.0.0.1:{other.endpoint.port}/{path}") == 404
            assert status(run.address + path, method="POST") == 405
    finally:
        other.close()


def test_the_page_requests_nothing_else(fake_run: Open) -> None:
    page = get(fake_run(1).address)[1].decode()
    assert "/* " not in page, "a file that was not put in"
    assert set(re.findall(r'[a-z]+://[^"\s]*', page)) == {"http://www.w3.org/2000/svg"}  # a name
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"data:,", "/api/live"}
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=", page
    )


def test_its_files_are_installed() -> None:
    declared = "".join((REPOSITORY / name).read_text() for name in ("setup.py", "pyproject.toml"))
    assert "telemetry/live_page/*" in declared
    found = {path.name for path in (REPOSITORY / "hvdtrain").glob("telemetry/live_page/*")}
    assert found == {"live.html", "live.css", "charts.js", "live.js"}
