"""What `import hvdtrain` offers: the pages and the notebook are run, and it stays quick."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hvdtrain
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.errors import ConfigError, DataError
from tests.launch import REPOSITORY, environment

PAGE = REPOSITORY / "docs/how-to/python.md"
NOTEBOOK = REPOSITORY / "docs/examples/python.ipynb"
CONFIG = """
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.01, warmup: none}}
phases:
  - {{epochs: 1, image_size: 8, batch_per_worker: 4}}
  - {{epochs: 1, image_size: 16, batch_per_worker: 8}}
metrics: {{enabled: false}}
"""


@pytest.fixture
def checkout(digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `configs` and `data/digits`, as a checkout has them after `make demo`."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/digits").symlink_to(digits_root)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    out = capsys.readouterr().out
    assert "12 epochs, 1438 images" in out
    assert "train.log_evry: unknown key; did you mean log_every?" in out
    assert (Path(names["summary"]["run_dir"]) / "report.html").is_file()


def test_the_notebook_runs(checkout: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert names["summary"]["epochs"] == 2
    assert names["batch"].images.shape == (64, 3, 16, 16)
    assert all(not cell.get("outputs") for cell in cells), "outputs do not belong in the repository"


def test_importing_and_planning_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(CONFIG.format(root="nowhere"))
    code = (
        "import sys, hvdtrain\n"
        "assert {'torch', 'numpy', 'pydantic'}.isdisjoint(sys.modules)\n"
        "cfg = hvdtrain.load_config('x.yaml', ['data.train_size=80'])\n"
        "assert len(hvdtrain.plan(cfg, 2).epochs) == 2\n"
        "assert {'torch', 'nvidia.dali'}.isdisjoint(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_names_mean_the_same_before_and_after_their_module_is_imported() -> None:
    import hvdtrain.plan.epochs
    import hvdtrain.train

    assert isinstance(hvdtrain.plan, ModuleType)
    assert callable(hvdtrain.plan)
    assert callable(hvdtrain.train)
    assert {"plan", "train", "load", "Loaders", "watch", "build_model"} <= set(dir(hvdtrain))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = hvdtrain.nothing


class Place(Solo):
    """One rank of two, on which set-up is like on the other: no rank has to wait for it."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def gather_text(self, text: str) -> list[str]:
        return [text, text]


def test_loaders_of_two_ranks_share_each_epoch(small_root: Path) -> None:
    cfg = parse_config(CONFIG.format(root=small_root))
    before = threading.active_count()
    orders = []
    for _repeated in range(2):
        seen: list[list[int]] = [[], []]
        for rank in range(2):
            with hvdtrain.Loaders(cfg, Place(rank)) as loaders:
                for epoch in loaders.epochs:
                    assert len(loaders.train(epoch)) == epoch.steps
                    batches = list(loaders.train(epoch))
                    assert len(batches) == epoch.steps
                    sizes = {tuple(batch.images.shape[1:]) for batch in batches}
                    assert sizes == {(3, epoch.image_size, epoch.image_size)}
                    for batch in batches:
                        kept = batch.weights.numpy() > 0
                        seen[epoch.index] += batch.indices[kept].tolist()
                assert sum(float(b.weights.sum()) for b in loaders.val(epoch)) == 7
        assert [sorted(epoch) for epoch in seen] == [list(range(22))] * 2
        assert seen[0] != seen[1]
        orders.append(seen)
    assert orders[0] == orders[1]
    assert threading.active_count() <= before


def test_loaders_that_are_left_early_end_their_threads(small_root: Path) -> None:
    cfg = parse_config(CONFIG.format(root=small_root))
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), hvdtrain.Loaders(cfg, Solo()) as loaders:
        _ = len(next(iter(loaders.train(loaders.epochs[0]))).labels) / 0
    assert threading.active_count() <= before


def test_what_is_refused(small_root: Path, tmp_path: Path) -> None:
    cfg = parse_config(CONFIG.format(root=small_root))
    with pytest.raises(ConfigError, match="world_size: expected at least 1, found 0"):
        hvdtrain.plan(cfg, 0)
    with pytest.raises(ConfigError, match="build_model: num_classes: not given"):
        hvdtrain.build_model(cfg)
    with pytest.raises(DataError):
        hvdtrain.Loaders(parse_config(CONFIG.format(root=tmp_path)), Solo())
    with pytest.raises(hvdtrain.HvdtrainError, match="unknown model"):
        hvdtrain.plan(
            parse_config(CONFIG.format(root=small_root).replace("resnet8_gn", "resnet8_gm"))
        )


def test_a_model_has_the_weights_that_its_seed_gives(small_root: Path) -> None:
    cfg = parse_config(CONFIG.format(root=small_root))
    one, two = (hvdtrain.build_model(cfg, 2).state_dict() for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)


def test_a_run_is_loaded_as_a_classifier(tmp_path: Path) -> None:
    pytest.importorskip("hvdtrain.inference.classifier")
    with pytest.raises(hvdtrain.HvdtrainError):
        hvdtrain.load(tmp_path)
