"""The page of an evaluation on two ranks is that of one process."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.launch import mpirun, run
from tests.study_runs import made_run


def test_two_ranks_write_the_page_of_one(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("3", "8"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for k in range(7):  # 14 images do not fill the last batch of two ranks
                pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{k}.png")
    made_run(tmp_path / "run", tmp_path / "images")
    pages = []
    for ranks in (1, 2):
        page = tmp_path / f"{ranks}.html"
        words = [sys.executable, "-m", "hvdtrain", "eval", "run", "--html", str(page), "--json"]
        done = run(mpirun(ranks, *words), cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["images"] == 14
        # The time, and the names that matplotlib draws for parts of a figure, differ.
        text = re.sub(r"\d\d:\d\d:\d\d UTC|\b[a-z][0-9a-f]{10}\b", "", page.read_text())
        pages.append(text)
    assert pages[0] == pages[1]
    assert pages[0].count("<img ") > 0
