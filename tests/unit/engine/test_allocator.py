"""Freed memory is kept for the next step; measured in a separate process by its page faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys

_CHILD = """
import json, resource
import torch
from hvdtrain.comm.ranks import Solo
from hvdtrain.engine.build import choose_device

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    tensors = [torch.ones(10_000_000) for _ in range(3)]

step()
before = faults()
for _ in range(20):
    step()
default = faults() - before
choose_device(Solo())
for _ in range(20):  # the heap grows for 4 to 7 of them
    step()
before = faults()
for _ in range(20):
    step()
print(json.dumps([default, faults() - before]))
"""


def pages(**env: str) -> tuple[int, int]:
    """Page faults of twenty steps that use 120 MB, by default and after `choose_device`."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **env}
    command = [sys.executable, "-c", _CHILD]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    default, kept = json.loads(done.stdout)
    return default, kept


def test_freed_memory_is_kept() -> None:
    default, kept = pages()
    assert default > 20 * 120e6 / 4096 * 0.9
    assert kept < default / 20


def test_what_the_environment_sets_stays() -> None:
    default, kept = pages(MALLOC_ARENA_MAX="2")
    assert kept > default / 2
