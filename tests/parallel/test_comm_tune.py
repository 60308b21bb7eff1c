"""All ranks use the same measured settings, and the same again when the run is resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.launch import REPOSITORY, mpirun, run


def test_ranks_agree_on_what_was_measured(tmp_path: Path) -> None:
    worker = REPOSITORY / "tests/parallel/tune_worker.py"
    done = run(mpirun(2, sys.executable, worker, tmp_path / "tuning.json"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = json.loads(done.stdout.strip().splitlines()[-1])
    assert ranks[0] == ranks[1]
    (first, again), text = ranks[0]
    record = json.loads((tmp_path / "tuning.json").read_text())
    assert first == again
    assert first["group_mb"] == record["group_mb"]
    assert first["compression"] == record["compression"]
    assert "kept from tuning.json" in text
    assert len(record["exchanges"]) >= 2
