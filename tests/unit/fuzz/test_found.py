"""What damaged files have found: each stays one line."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from hvdtrain.checkpoint_files import read_meta
from hvdtrain.config.load import MAX_MESSAGE, parse_config
from hvdtrain.engine.checkpoint import save_checkpoint
from hvdtrain.errors import CheckpointError, CommError, ConfigError, DataError, ResourceError
from hvdtrain.launch.allocation import slurm_placement
from hvdtrain.launch.hosts import parse_hosts, read_hostfile
from hvdtrain.launch.slurm_task import horovod_variables
from hvdtrain.report.events import number, read_mapping
from hvdtrain.scaling.compare import read_measured
from pipelines.sources.shards import ShardReader
from tests.step_samples import network, state_of
from tests.unit.fuzz.mutations import Change
from tests.unit.fuzz.reader import sealed

NESTED = "[" * 100_000


@pytest.mark.parametrize("name", ["summary.json", "config.yaml"])
def test_a_nested_file_of_a_run_counts_as_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(NESTED)
    assert read_mapping(tmp_path / name) == {}


def test_a_number_of_hundreds_of_digits() -> None:
    assert number({"a": 10**400}, "a") is None


def test_an_image_longer_than_its_shard_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(100))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a.tar: cut short: 17179869184 bytes expected at byte 50"):
        ShardReader([str(tmp_path / "a.tar")]).read(0, 50, 2**34)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_points_that_are_nested(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(NESTED)
    with pytest.raises(ResourceError, match="expected a JSON list of measured points"):
        read_measured(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [("data", 5, "data"), ("data", {"classes": [1]}, "data.classes"), ("data", {"train": {}}, "data.train"),
     ("labels", {"train_images": "4"}, "labels.train_images"), ("train_seconds", "1.5", "train_seconds")],
)  # fmt: skip
def test_metadata_of_another_type(key: str, value: object, place: str, tmp_path: Path) -> None:
    path = save_checkpoint(state_of(network()), tmp_path, 2, {})
    file = path / "meta.json"
    meta = {**json.loads(file.read_bytes())["meta"], key: value}
    nothing = Change("delete", 1.0, 1, b"")
    file.write_bytes(sealed(json.dumps({"meta": meta}).encode(), [nothing]))
    with pytest.raises(CheckpointError, match=f"not written by hvdtrain: {place}"):
        read_meta(path)


def test_hosts_with_control_characters_and_without_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        parse_hosts("a:4,\x1b[31mb:1")
    assert "\x1b" not in str(error.value)
    (tmp_path / "hosts").write_bytes(b"\xff" + b"a" * 9000)
    with pytest.raises(ConfigError) as error:
        read_hostfile(tmp_path / "hosts")
    assert len(str(error.value)) < 300 + len(str(tmp_path))
    with pytest.raises(ConfigError, match="not a regular file"):
        read_hostfile(Path("/dev/zero"))
    with pytest.raises(ConfigError, match="expected a number from 1 to 4096"):
        parse_hosts("a:" + "9" * 5000)


def test_variables_of_slurm_that_do_not_fit() -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b", "SLURM_TASKS_PER_NODE": "4"}
    with pytest.raises(ResourceError, match="counts of 1 nodes, SLURM_JOB_NODELIST names 2"):
        slurm_placement(job)
    with pytest.raises(CommError, match="SLURM_STEP_NUM_TASKS: expected a number, found '²'"):
        horovod_variables({"SLURM_STEP_NUM_TASKS": "²"})


def test_a_long_value_is_cut_in_a_message() -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(f"phases: [{{epochs: 1}}]\nmetrics: {{pushgateway: {'a' * 9000}}}")
    assert len(str(error.value)) < MAX_MESSAGE + 50
