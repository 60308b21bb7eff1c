"""An error that nobody foresaw: one line, a code of its own, and the traceback in a file."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hvdtrain import activity
from hvdtrain.cli.crash import unexpected
from hvdtrain.errors import ResourceError, is_out_of_memory
from pipelines.images.decoder import DecodeError, decode_fault
from tests.launch import environment

BROKEN = """
import pathlib, sys
import hvdtrain.config.load as load
def broken(*_): BODY
load._validate = broken
from hvdtrain.cli.main import main
main()
"""


def crash(
    tmp_path: Path,
    *before: str,
    tmpdir: str,
    body: str = 'raise ZeroDivisionError("caf\\udce9 of " + "x" * 400)',
) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "a.yaml"
    config.write_text("phases: [{epochs: 1}]")
    return subprocess.run(
        [*before, sys.executable, "-c", BROKEN.replace("BODY", body), "plan", str(config)],
        env=environment({"TMPDIR": tmpdir}),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_one_line_and_a_file(tmp_path: Path) -> None:
    done = crash(tmp_path, tmpdir=str(tmp_path))
    assert done.returncode == 70
    [line] = done.stderr.splitlines()
    assert line.startswith("hvdtrain: error: internal error at hvdtrain/")
    assert "ZeroDivisionError" in line
    assert len(line) < 600
    [file] = tmp_path.glob("hvdtrain-crash-*.txt")
    assert str(file) in line
    content = file.read_text()
    assert "Traceback" in content
    assert re.search(r"hvdtrain \d.*Python 3", content)


def test_without_a_place_for_the_file_the_traceback_is_printed(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    limited = ["prlimit", "--fsize=0", "--"]
    done = crash(tmp_path, *limited, tmpdir=str(tmp_path))
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "the traceback above" in done.stderr.splitlines()[-1]


def test_a_lack_of_memory_is_no_bug(tmp_path: Path) -> None:
    done = crash(tmp_path, tmpdir=str(tmp_path), body="bytearray(2**60)")
    assert done.returncode == ResourceError.exit_code
    [line] = done.stderr.splitlines()
    line = re.sub(r", \d+ s:", ":", line)  # how long it took, on a busy machine
    assert line == (
        "hvdtrain: error: out of memory during: starting: use fewer --threads, or a machine with more "
        "memory"
    )
    assert not [*tmp_path.glob("hvdtrain-crash-*")]


def too_large_for_torch() -> None:
    torch.empty(2**50)


def too_large_for_numpy() -> None:
    np.empty(2**60, dtype=np.uint8)


def too_large_for_a_gpu() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.25 GiB"
    )


@pytest.mark.parametrize(
    ("fails", "asked", "where"),
    [
        (too_large_for_torch, "tried to allocate 4503599627370496 bytes", "out of memory"),
        (too_large_for_numpy, "allocate 1.00 EiB", "out of memory"),
        (too_large_for_a_gpu, "tried to allocate 20.00 MiB", "out of memory on the GPU"),
    ],
)
def test_memory_of_each_kind(fails: Callable[[], None], asked: str, where: str) -> None:
    activity.enter("epoch 3", 40)
    activity.step(7)
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        fails()
    error = unexpected(caught.value)
    assert isinstance(error, ResourceError)
    assert str(error).startswith(
        f"{where} during: epoch 3, step 7 of 40 ({asked}): reduce phases.N."
    )
    assert ("decode_threads" in str(error)) == (where == "out of memory")


@pytest.mark.parametrize(
    ("text", "lacking"),
    [
        ("could not create a primitive", True),
        ("could not create a memory object", True),
        ("could not create a primitive descriptor for a convolution", False),
    ],
)
def test_memory_that_the_layers_of_a_cpu_lack(text: str, lacking: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) == lacking


def test_a_thread_that_cannot_be_started_is_no_bug() -> None:
    activity.enter("epoch 3", 40)
    activity.step(7)
    usual = threading.stack_size(2**46)  # more than there are addresses
    try:
        with pytest.raises(RuntimeError) as caught:
            threading.Thread(target=int).start()
    finally:
        threading.stack_size(usual)
    error = unexpected(caught.value)
    assert isinstance(error, ResourceError)
    assert str(error).startswith("no new thread could be started during: epoch 3, step 7 of 40: ")


def test_lacking_memory_makes_no_image_bad() -> None:
    assert isinstance(decode_fault(RuntimeError("Error: std::bad_alloc")), MemoryError)
    assert isinstance(decode_fault(RuntimeError("nvjpeg: damaged")), DecodeError)
