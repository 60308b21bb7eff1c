"""Bad images: each listed once, counted by reason, and too many of them end the run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Data, Metrics, Phase
from hvdtrain.errors import DataError
from hvdtrain.telemetry.bad_list import read_list, write_list
from hvdtrain.telemetry.bad_samples import BadSamples
from hvdtrain.telemetry.prometheus import Exporter
from hvdtrain.telemetry.reports import Note, Report
from pipelines.bad import REASONS, BadSample
from pipelines.sources.retries import Retried
from tests.launch import free_port


class Notes:
    """Sinks that keep what they get."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasons: list[str] = []
        self.retries: list[int] = []

    def write(self, report: Report) -> None:
        assert isinstance(report, Note)
        self.texts.append(report.text)

    def observe_bad(self, reason: str) -> None:
        self.reasons.append(reason)

    def observe_retries(self, count: int) -> None:
        self.retries.append(count)

    def note(self, text: str) -> None:
        self.texts.append(text)


def bad(index: int, reason: str = "decode") -> BadSample:
    return BadSample(index, 0, reason, f"a/{index}.jpg", "damaged")


def settle(samples: BadSamples, sinks: Any, num_samples: int = 100) -> list[BadSample]:
    return samples.settle(samples.counts(), num_samples, sinks)


def test_each_is_named_once_and_counted_every_time(tmp_path: Path) -> None:
    sinks, path = Notes(), tmp_path / "bad.jsonl"
    samples = BadSamples(Data(max_bad_ratio=0.1), Solo(), path)
    for epoch in range(2):
        samples.start_epoch()
        samples.add([bad(4), bad(2, "empty")], sinks)  # type: ignore[arg-type]
        assert samples.counts() == (2, 0 if epoch else 2, 0)
        assert settle(samples, sinks) == ([] if epoch else [bad(2, "empty"), bad(4)])
        assert samples.counts() == (0, 0, 0)
    assert sinks.texts == [
        f"warning: 2 bad images masked, listed in {path}: "
        "a/2.jpg (empty: damaged), a/4.jpg (decode: damaged)"
    ]
    assert sinks.reasons == ["decode", "empty"] * 2
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [2, 4]


class Images:
    """A hundred training images."""

    def __len__(self) -> int:
        return 100

    def name(self, i: int) -> str:
        return f"a/{i}.jpg"


def test_a_resumed_run_knows_the_list(tmp_path: Path) -> None:
    sinks, path = Notes(), tmp_path / "bad.jsonl"
    assert read_list(path, Images()) == ([], "")
    first = BadSamples(Data(), Solo(), path)
    first.add([bad(4)], sinks)  # type: ignore[arg-type]
    settle(first, sinks)
    again = BadSamples(Data(), Solo(), path)
    assert read_list(path, Images()) == ([bad(4)], "")
    again.restore([bad(4)])
    again.add([bad(4), bad(9)], sinks)  # type: ignore[arg-type]
    assert again.counts() == (2, 1, 0)
    settle(again, sinks, 1000)
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [4, 9]


GOOD = json.dumps(asdict(bad(4)))


def edited(**changes: Any) -> str:
    return json.dumps({**asdict(bad(5)), **changes})


@pytest.mark.parametrize(
    "line",
    [
        *(GOOD[:-20], "nonsense", "[1, 2]", "null", "{}", "NaN", "\x00\x00", "[" * 100_000),
        *(edited(index=value) for value in (-1, 100, 2.0, True, None, "5", 10**30)),
        *(edited(epoch=float("nan")), edited(reason="whim"), edited(name=None)),
        *(edited(detail=[1]), edited(crc32="x"), edited(more=1)),
        edited(index=6),  # the name is that of another image
    ],
)
def test_a_damaged_line_is_told_and_the_others_count(line: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    assert read_list(path, Images()) == ([bad(4)], "1 of 2 lines are damaged")
    path.write_bytes(b"\xff\xfe\n" + GOOD.encode())
    assert read_list(path, Images()) == ([bad(4)], "1 of 2 lines are damaged")


def test_a_list_of_an_older_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    entry = asdict(bad(4))
    del entry["crc32"]
    path.write_text(json.dumps(entry))
    assert read_list(path, Images()) == ([bad(4)], "")


def test_a_list_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    sinks, path = Notes(), tmp_path / "bad.jsonl"
    path.mkdir()
    assert read_list(path, Images()) == ([], "is no file")
    samples = BadSamples(Data(max_bad_ratio=0.5), Solo(), path)
    for k in range(2):
        samples.add([bad(k)], sinks)  # type: ignore[arg-type]
        settle(samples, sinks)
    told = [text for text in sinks.texts if "cannot be written" in text]
    assert told == [f"warning: {path}: cannot be written: Is a directory; training goes on"]


def test_retries_are_told_once_and_counted_always(tmp_path: Path) -> None:
    sinks = Notes()
    samples = BadSamples(Data(), Solo(), tmp_path / "bad.jsonl")
    for count in (2, 3):
        samples.add_retried(Retried(count, ["a/1.jpg (Stale file handle)"]), sinks)  # type: ignore[arg-type]
        assert samples.counts() == (0, int(count == 2), count)
        settle(samples, sinks)
        samples.add_retried(Retried(), sinks)  # type: ignore[arg-type]
        assert samples.counts() == (0, 0, 0)
    samples.close(Retried(1, ["a/2.jpg (Input/output error)"]), sinks)  # type: ignore[arg-type]
    assert sinks.texts == [
        "warning: reads failed and were tried again (2 so far): a/1.jpg (Stale file handle); "
        "further ones are only counted, in read_retries of events.jsonl"
    ]
    assert sinks.retries == [2, 3, 1]


def test_retries_after_the_last_report_are_told_at_the_end(tmp_path: Path) -> None:
    sinks = Notes()
    samples = BadSamples(Data(), Solo(), tmp_path / "bad.jsonl")
    samples.close(Retried(1, ["a/2.jpg (Input/output error)"]), sinks)  # type: ignore[arg-type]
    assert len(sinks.texts) == 1


def test_a_long_list_is_cut_in_the_log_only(tmp_path: Path) -> None:
    sinks, path = Notes(), tmp_path / "bad.jsonl"
    samples = BadSamples(Data(), Solo(), path)
    samples.add([bad(k) for k in range(9)], sinks)  # type: ignore[arg-type]
    settle(samples, sinks, 10000)
    assert sinks.texts[0].endswith(" and 4 more")
    assert len(path.read_text().splitlines()) == 9


def test_one_too_many_in_an_epoch_ends_the_run(tmp_path: Path) -> None:
    sinks, path = Notes(), tmp_path / "bad.jsonl"
    samples = BadSamples(Data(max_bad_ratio=0.02), Solo(), path)
    for _epoch in range(2):
        samples.start_epoch()
        samples.add([bad(1)], sinks)  # type: ignore[arg-type]
        settle(samples, sinks)
        samples.add([bad(2)], sinks)  # type: ignore[arg-type]
        settle(samples, sinks)
    samples.add([bad(3)], sinks)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data\.max_bad_ratio: 3 bad images so far") as error:
        settle(samples, sinks)
    assert error.value.everywhere
    assert str(path) in str(error.value)
    assert len(path.read_text().splitlines()) == 3


def test_the_metric_has_a_label_for_every_reason() -> None:
    exporter = Exporter(Config(phases=[Phase(epochs=1)], metrics=Metrics(port=free_port())), Solo())
    try:
        exporter.bad_samples["empty"].inc()
        found = {
            reason: exporter.registry.get_sample_value(
                "hvdtrain_bad_samples_total", {"reason": reason}
            )
            for reason in REASONS
        }
    finally:
        exporter.close()
    assert found == {reason: float(reason == "empty") for reason in REASONS}


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"\xff\xfe", b"[" * 5000, b'{"index": 1}', b"7" * 5000,
     b'{"index": -1, "epoch": 0, "reason": "decode", "name": "a", "detail": ""}',
     b'{"index": true, "epoch": 0, "reason": "decode", "name": "a", "detail": ""}'],
)  # fmt: skip
def test_a_damaged_line_is_left_out(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    write_list(path, [bad(2), bad(4)])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n" + line + b"\n\n", 1))
    assert read_list(path, Images()) == ([bad(2), bad(4)], "1 of 3 lines are damaged")
