"""An installation without Horovod and MPI: one process works, several ranks get one line."""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain.comm import start
from hvdtrain.comm.horovod import horovod_features, mpi_library
from hvdtrain.comm.start import init_comm
from hvdtrain.errors import CommError
from hvdtrain.launch.variables import HOROVOD_SIZE, MPI_SIZES, SIZES
from hvdtrain.versions import GET_HOROVOD


@pytest.fixture(autouse=True)
def without_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("horovod", "mpi4py")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in SIZES})


def test_one_process_needs_no_horovod() -> None:
    assert init_comm().size == 1


@pytest.mark.parametrize("variable", [HOROVOD_SIZE, *MPI_SIZES])
def test_ranks_without_horovod_are_refused_in_one_line(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.environ[variable] = "2"
    monkeypatch.setattr(start, "require_launcher", lambda env: None)
    with pytest.raises(CommError) as caught:
        init_comm()
    message = str(caught.value)
    assert message.startswith("started as 2 ranks, but Horovod cannot be imported")
    assert message.endswith(GET_HOROVOD)
    assert "\n" not in message


def test_doctors_checks_say_how_to_get_what_is_missing() -> None:
    for check in (horovod_features, mpi_library):
        with pytest.raises(CommError) as caught:
            check()
        assert str(caught.value).endswith(GET_HOROVOD)


def test_the_store_of_srun_needs_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hvdtrain.launch.rendezvous", raising=False)
    with pytest.raises(CommError) as caught:
        importlib.import_module("hvdtrain.launch.rendezvous")
    assert str(caught.value).endswith(GET_HOROVOD)


def test_a_horovod_built_without_torch_is_named_as_such_and_nothing_else_is_printed(
    tmp_path: Path,
) -> None:
    """As `pip install horovod` leaves it behind where torch was not there to build with."""
    found = importlib.machinery.PathFinder.find_spec("horovod")
    if found is None or found.origin is None:
        pytest.skip("no Horovod here")
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(Path(found.origin).parent, tmp_path / "horovod", ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-m", "hvdtrain", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert (done.returncode, checks["horovod"]["ok"]) == (1, False)
    built = "Horovod was built without torch, so its build has failed"
    assert checks["horovod"]["detail"] == f"{built}: {GET_HOROVOD}"
    assert "MPI libs are missing" not in done.stderr
