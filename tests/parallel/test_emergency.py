"""When one rank fails in mid-epoch, a checkpoint keeps the updates so far, and a resume ends with the same bits."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch

from hvdtrain.checkpoint_files import list_checkpoints, verify
from pipelines.images.decoder import DEPTH
from tests.launch import ENGINES, REPOSITORY, run
from tests.parallel.emergency_worker import STEPS

WORKER = REPOSITORY / "tests/parallel/emergency_worker.py"


@pytest.fixture(scope="module", params=ENGINES)
def runs(
    small_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    out = tmp_path_factory.mktemp("emergency")
    shutil.copytree(small_root / "train", out / "images")
    shutil.copytree(small_root / "val", out / "validation")
    done = run(ENGINES[request.param](2, sys.executable, WORKER, out, out), cwd=out)
    assert (out / "rank-0.json").exists(), done.stdout + done.stderr
    return out


@pytest.mark.parametrize("case", STEPS)
def test_a_rank_without_images_loses_no_update(runs: Path, case: str) -> None:
    told = [json.loads((runs / f"rank-{rank}.json").read_text())[case] for rank in (0, 1)]
    assert told[0] == told[1]
    code, everywhere, line = told[0]
    assert (code, everywhere) == (3, True)
    found = re.fullmatch(
        rf"rank 1: {runs}/(?:images|validation)/\S+: cannot read: No such file or directory; update (\d+) is saved in "
        rf"{runs}/failing/checkpoints/e(\d+)-s(\d+): go on with --resume {runs}/failing",
        line,
    )
    assert found is not None, line
    step, epoch, sample = map(int, found.groups())
    lost = 0 if case == "evaluation" else DEPTH  # of what is being decoded
    assert STEPS[case] - lost <= step <= STEPS[case]
    assert step == 6 * epoch + sample // 4


def test_the_end_is_that_of_an_undisturbed_run(runs: Path) -> None:
    whole, resumed = (
        verify(list_checkpoints(runs / name / "checkpoints")[0]) for name in ("whole", "failing")
    )
    assert resumed["sha256"] == whole["sha256"]  # weights, optimizer, averages, statistics
    assert (resumed["step"], resumed["samples"]) == (12, 44) == (whole["step"], whole["samples"])


def test_ranks_that_wait_for_statistics_are_freed_and_keep_those_before_the_step(
    runs: Path,
) -> None:
    """With `model.batch_norm: global`, the first sum of a step is that of the first layer."""
    told = [json.loads((runs / f"rank-{rank}.json").read_text())["global"] for rank in (0, 1)]
    assert told[0] == told[1]
    assert re.search(r"cannot read: .*; update [1-4] is saved in", told[0][2]), told
    [saved] = list_checkpoints(runs / "global/checkpoints")
    meta = verify(saved)
    assert "buffers.safetensors" not in meta["sha256"]  # those of all ranks are the same
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    tracked = [int(t) for key, t in tensors.items() if key.endswith("num_batches_tracked")]
    assert set(tracked) == {meta["step"]}


def test_rank_0_saves_alone_where_it_knows_the_whole_state(runs: Path) -> None:
    code, everywhere, line = json.loads((runs / "rank-0.json").read_text())["gone"]
    assert (code, everywhere) == (5, False)
    path = runs / "gone/checkpoints" / "e0000-s0000000016"
    assert line.endswith(f"; update 4 is saved in {path}: go on with --resume {runs / 'gone'}")
    meta = verify(path)
    assert (meta["step"], meta["samples"]) == (4, 16)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_saved_without_the_errors_of_powersgd_of_a_rank_that_is_gone(
    engine: str, small_root: Path, tmp_path: Path
) -> None:
    for name, source in (("images", "train"), ("validation", "val")):
        (tmp_path / name).symlink_to(small_root / source)
    done = run(
        ENGINES[engine](2, sys.executable, WORKER, tmp_path, tmp_path, "alone"), cwd=tmp_path
    )
    assert (tmp_path / "rank-0.json").exists(), done.stdout + done.stderr
    code, everywhere, line = json.loads((tmp_path / "rank-0.json").read_text())["compressed"]
    assert (code, everywhere) == (5, False)
    assert "another rank is gone" in line
    assert "saved" not in line
    assert list_checkpoints(tmp_path / "compressed/checkpoints") == []
