"""docs/tutorial/first-model.md: its training commands as they are printed, on few images for one epoch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.launch import REPOSITORY, run
from tests.unit.docs.pages import commands

PAGE = REPOSITORY / "docs/tutorial/first-model.md"


@pytest.fixture
def reader(digits_root: Path, tmp_path: Path) -> Path:
    """The folder of a reader who has saved `my.yaml` and put own images into `data/mine`."""
    [config] = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert "epochs: 10," in config
    (tmp_path / "my.yaml").write_text(config.replace("epochs: 10,", "epochs: 1,"))
    for split in ("train", "val"):
        for digit in range(10):
            folder = tmp_path / "data/mine" / split / str(digit)
            folder.mkdir(parents=True)
            for image in sorted((digits_root / split / str(digit)).iterdir())[:8]:
                (folder / image.name).symlink_to(image)
    return tmp_path


def test_word_for_word(reader: Path) -> None:
    printed = [command.words for command in commands(PAGE)]
    train, both = (
        next(words for words in printed if " ".join(words).startswith(begin))
        for begin in ("hvdtrain train", "hvdtrain launch --hosts localhost:2 -- train")
    )
    [evaluate] = (words for words in printed if words[:2] == ("hvdtrain", "eval"))
    for words in (train, both):
        done = run(words, cwd=reader)
        assert done.returncode == 0, (words, done.stdout, done.stderr[-2000:])
    runs = sorted((reader / "runs").iterdir())
    sizes = [json.loads((path / "summary.json").read_text())["world_size"] for path in runs]
    assert sizes == [1, 2]
    done = run((*evaluate[:2], f"runs/{runs[0].name}"), cwd=reader)
    assert re.match(r"top-1 0\.\d+ .*\(80 images, ", done.stdout), done.stderr
