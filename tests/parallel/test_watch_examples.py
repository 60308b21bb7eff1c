"""The scripts of docs/how-to/watch.md and python.md, each on two ranks."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.launch import REPOSITORY, run
from tests.parallel.test_watch import torchrun

PAGES = [REPOSITORY / "docs/how-to" / name for name in ("watch.md", "python.md")]
SCRIPT = re.compile(r'^```python title="(\S+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
SCRIPTS = {name: text for page in PAGES for name, text in SCRIPT.findall(page.read_text())}
STEPS = {"train.py": 60, "watch_lightning.py": 20, "watch_accelerate.py": 20}
"""Script → its steps on each rank."""
NEEDS = {"watch_lightning.py": "lightning", "watch_accelerate.py": "accelerate"}


@pytest.mark.parametrize("name", STEPS)
def test_the_script_is_watched(tmp_path: Path, name: str) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    (tmp_path / name).write_text(SCRIPTS[name])
    done = run(torchrun(2, name), cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in "".join(re.findall("hvdtrain: .*", done.stderr)), done.stderr
    [root] = (tmp_path / "runs").iterdir()
    summary = json.loads((root / "summary.json").read_text())
    assert (summary["world_size"], summary["steps"]) == (2, STEPS[name])
    assert summary["samples"] == (STEPS[name] - 1) * 16 * 2  # the first step does not count
    assert 0 < summary["scaling_efficiency"] <= 1
    assert summary["lost_time"]["communication"] > 0
    assert summary["lost_time"]["data"] > 0
    assert (root / "report.html").is_file()


def test_loaders_in_a_loop_on_two_ranks(digits_root: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/digits").symlink_to(digits_root)
    (tmp_path / "own_loop.py").write_text(SCRIPTS["own_loop.py"])
    done = run(torchrun(2, "own_loop.py"), cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    [root] = (tmp_path / "runs").iterdir()
    lines = (root / "events.jsonl").read_text().splitlines()
    reports = [event for event in map(json.loads, lines) if event["kind"] == "train"]
    # 1438 images: 23 steps of 64 at 8 px, then 12 of 128 at 16 px.
    assert (reports[0]["image_size"], reports[0]["batch_per_worker"]) == (8, 32)
    assert (reports[-1]["image_size"], reports[-1]["batch_per_worker"]) == (16, 64)
    assert (reports[-1]["step"], reports[-1]["epoch"]) == (35, 2.0)


def test_the_plain_script_is_short() -> None:
    lines = SCRIPTS["train.py"].partition("torch.distributed.init_process_group")[2].splitlines()
    assert len(lines) <= 16
    assert sum("watch" in line for line in lines) == 4
