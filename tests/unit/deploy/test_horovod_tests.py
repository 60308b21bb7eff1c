"""`make horovod-tests`: its files are those of the release, and every odd outcome is told."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import horovod_tests
from progress import SetupError

LOG = """\
test/parallel/test_torch.py::TorchTests::test_a PASSED                  [ 25%]
test/parallel/test_torch.py::TorchTests::test_b {b}                     [ 50%]
test/parallel/test_torch.py::TorchTests::test_c SKIPPED (No GPUs)       [ 75%]
test/parallel/test_torch.py::TorchTests::test_d {d}
=========================== short test summary info ============================
FAILED test/parallel/test_torch.py::TorchTests::test_b - ValueError
"""


def test_the_worst_outcome_of_all_ranks_counts(tmp_path: Path) -> None:
    (tmp_path / "rank0.log").write_text(LOG.format(b="PASSED", d="PASSED [100%]"))
    (tmp_path / "rank1.log").write_text(LOG.format(b="FAILED", d=""))
    assert horovod_tests.read_logs(tmp_path, 2) == {
        "test_a": "passed",
        "test_b": "failed",
        "test_c": "skipped",
        "test_d": "no end",
    }
    assert horovod_tests.read_logs(tmp_path, 1)["test_d"] == "passed"


def test_unknown_failures_and_differences_are_told() -> None:
    ours = {"test_a": "passed", "test_b": "failed", "test_c": "failed"}
    known = {"test_c": "a reason"}
    assert horovod_tests.judge(ours, None, known) == ["test_b: failed"]
    assert horovod_tests.judge(ours, dict(ours), known) == ["test_b: failed"]
    stock = ours | {"test_a": "skipped", "test_d": "passed"}
    assert horovod_tests.judge(ours, stock, known)[1:] == [
        "test_a: passed, on stock Horovod skipped",
        "test_d: not run, on stock Horovod passed",
    ]


def test_every_known_failure_has_a_reason() -> None:
    known = horovod_tests.known_failures()
    assert known
    assert all(name.startswith("test_") and reason for name, reason in known.items())


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, data = "test/parallel/test_torch.py", b"print('not ours')\n"
    source = tmp_path / "source"
    (source / name).parent.mkdir(parents=True)
    (source / name).write_bytes(data)
    monkeypatch.setattr(horovod_tests, "FILES", {name: "0" * 64})
    with pytest.raises(SetupError, match="not the file of Horovod"):
        horovod_tests.get_files(tmp_path / "cache", source)
    assert not (tmp_path / "cache" / name).exists()
    with pytest.raises(SetupError, match="give a checkout of Horovod's release"):
        horovod_tests.get_files(tmp_path / "cache", tmp_path / "nowhere")
    monkeypatch.setattr(horovod_tests, "FILES", {name: hashlib.sha256(data).hexdigest()})
    (tmp_path / "cache/test/utils").mkdir(parents=True)
    horovod_tests.get_files(tmp_path / "cache", source)
    assert (tmp_path / "cache" / name).read_bytes() == data
