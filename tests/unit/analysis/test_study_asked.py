"""The members of a study, and what a study that has begun goes on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hvdtrain.analysis.study.asked import Asked, as_json, begun, members, require_fit
from hvdtrain.analysis.study.cost import member_config, plan_of
from hvdtrain.analysis.study.folder import Folder
from hvdtrain.analysis.study.processes import Processes
from hvdtrain.analysis.study.trainer import Trainer, gpus_here
from hvdtrain.cli.main import app
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError, ResourceError

BASE = """
data: {train: train, val: val}
model: {name: vgg_sigmoid}
lr: {base: 0.01, base_batch: 32, warmup: none, schedule: constant}
phases: [{epochs: 3, image_size: 32, batch_per_worker: 32}]
"""


def cfg(*settings: str) -> Config:
    return parse_config(BASE, overrides=list(settings))


def asked(**how: object) -> Asked:
    return Asked(**{"kind": "batch-size", "batches": (32, 128), **how})  # type: ignore[arg-type]


def test_members_of_each_batch_rate_and_seed() -> None:
    found = members(asked(scalings=("none", "linear", "sqrt"), seeds=2), cfg("seed=5"))
    rates = {m.name: m.rate for m in found}
    assert rates == {
        f"b{batch}-{how}-s{seed}": pytest.approx(rate)
        for seed in (5, 6)
        for batch, how, rate in [
            (32, "none", 0.01),  # scaled or not, it is the same run
            *((128, "none", 0.01), (128, "linear", 0.04), (128, "sqrt", 0.02)),
        ]
    }
    assert [m.seed for m in found] == [5] * 4 + [6] * 4
    for member in found:
        own = member_config(cfg(), member)
        plan = plan_of(cfg(), member, 1000)
        assert plan.epochs[0].global_batch_size == member.batch
        assert plan.epochs[-1].lr(0) == pytest.approx(member.rate)
        assert (own.seed, own.name, own.metrics.weights) == (member.seed, member.name, True)


def test_the_first_rate_is_what_the_config_gives_that_batch() -> None:
    [first, second] = members(asked(batches=(64, 128), scalings=("linear",)), cfg())
    assert (first.rate, second.rate) == (pytest.approx(0.02), pytest.approx(0.04))
    assert first.name == "b64-linear-s0"


def test_ranks_share_the_batch() -> None:
    found = members(asked(kind="parallel", ranks=(1, 2)), cfg("train.accumulate=2"))
    assert [m.name for m in found] == [f"b{b}-none-r{r}-s0" for r in (1, 2) for b in (32, 128)]
    assert member_config(cfg(), found[-1]).phases[0].batch_per_worker == 32
    command = Trainer(Folder(Path("here")), Processes(1), print).words(found[-1])
    assert command[:5] == ["launch", "--hosts", "localhost:2", "--", "train"]
    with pytest.raises(ConfigError, match="33 images cannot be shared by 2 ranks"):
        members(asked(batches=(33,), ranks=(2,)), cfg())


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (["data.train=null"], r"^data\.train: not set"),
        (["data.val=null"], r"^data\.val: not set"),
        (["phases.0.lr=0.1"], r"^phases\.0\.lr: a study sets lr\.base"),
    ],
)
def test_configs_that_make_no_study(settings: list[str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        require_fit(cfg(*settings))


def test_a_study_goes_on_as_it_began(tmp_path: Path) -> None:
    folder, first = Folder(tmp_path / "s"), asked(scalings=("none",), threads=3)
    assert begun(folder, first, cfg()) == first
    folder.write(asked=as_json(first, cfg()))
    more = asked(batches=(32, 128, 64), scalings=("none", "linear"), seeds=3, threads=1)
    assert begun(folder, more, cfg("train.log_every=7")) == Asked(**{**vars(more), "threads": 3})
    for wanted, settings, fault in [
        (asked(batches=(32,)), [], r"batches \[32, 128\] → \[32\]"),
        (asked(batches=(128, 32)), [], r"batches \[32, 128\] → \[128, 32\]"),
        (asked(seeds=0), [], "seeds 1 → 0"),
        (asked(), ["lr.base=0.02"], r"lr\.base 0\.01 → 0\.02"),
        (asked(), ["train.patience=4"], r"train\.patience null → 4"),
    ]:
        with pytest.raises(ConfigError, match=fault) as raised:
            begun(folder, wanted, cfg(*settings))
        assert "\n" not in str(raised.value)
    for damaged in ("{", "[]", '{"asked": 3}'):
        folder.study.write_text(damaged)
        with pytest.raises(ResourceError, match=r"study\.json: "):
            begun(folder, first, cfg())


def test_gpus_are_dealt_out(tmp_path: Path) -> None:
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "3,5"}) == ("3", "5")
    assert gpus_here({}, tmp_path / "none") == ()
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    gpus = gpus_here({}, tmp_path)
    processes = Processes(2, env={}, gpus=gpus)
    assert [processes.env_of(2, slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["0,1", "2,3"]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--batches", "32,x"], "--batches: 'x'"),
        (["--batches", "0"], "--batches: '0'"),
        (["--scaling", "cubic"], "--scaling: 'cubic': expected some of none, linear, sqrt"),
    ],
)
def test_words_that_mean_nothing(tmp_path: Path, words: list[str], fault: str) -> None:
    (tmp_path / "c.yaml").write_text(BASE)
    done = CliRunner().invoke(app, ["study", "batch-size", str(tmp_path / "c.yaml"), *words])
    assert isinstance(done.exception, ConfigError)
    assert fault in str(done.exception)


def test_a_batch_script_has_a_task_for_each_member(
    tmp_path: Path, small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(BASE)
    words = ["c.yaml", f"data.train={small_root}/train", f"data.val={small_root}/val"]
    words += ["--batches", "4,8", "--seeds", "1", "--slurm", "--output", "my study"]
    done = CliRunner().invoke(app, ["study", "batch-size", *words])
    assert done.exit_code == 0, done.output
    assert "#SBATCH --array=0-2\n" in done.stdout
    assert "    'my study/members/b8-linear-s0'\n" in done.stdout
    assert "lr.base=0.0025 lr.scaling=none phases.0.batch_per_worker=8 " in done.stdout
    assert "settings+=(${sweep[$SLURM_ARRAY_TASK_ID]})\n" in done.stdout
    assert 'run="${runs[$SLURM_ARRAY_TASK_ID]}"' in done.stdout
    assert json.loads((tmp_path / "my study/study.json").read_text())["asked"]["batches"] == [4, 8]


def test_it_is_not_started_by_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text(BASE)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    done = CliRunner().invoke(app, ["study", "parallel", str(tmp_path / "c.yaml")])
    assert isinstance(done.exception, ConfigError)
    assert "run it without a launcher, with --ranks" in str(done.exception)
