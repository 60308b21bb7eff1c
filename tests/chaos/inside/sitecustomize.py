"""Faults that happen inside of a rank. Python imports this file at its start in a job of `make chaos`.

A thread waits for the file `strike-RANK` in the folder of the case; its one word is the fault.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

FOLDER = os.environ.get("CHAOS_CASE", "")
RANK = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("RANK", "0")
HOUR_S = 3600.0


def _wait() -> None:
    order = Path(FOLDER) / f"strike-{RANK}"
    while not order.exists():
        time.sleep(0.02)
    fault = order.read_text()
    {
        "weight-flipped": lambda: _change_weight(lambda bits: bits ^ (1 << 20)),
        "weight-nan": lambda: _change_weight(lambda _: 0x7FC00000),
        "clock-jump": _jump,
        "rank-hangs": _hang,
        "read-hangs": _hang_reading,
    }[fault]()
    order.rename(order.with_name(f"struck-{RANK}"))


def _change_weight(change: Callable[[int], int]) -> None:
    """Change the bits of one weight, as a fault of the memory does, before the next step."""
    import torch

    done = threading.Event()

    def strike(module: torch.nn.Module, _: object) -> None:
        if threading.current_thread() is threading.main_thread() and not done.is_set():
            first = next(module.parameters(), None)
            if first is None:  # such as a ReLU: one of the next modules has weights
                return
            weights = first.data
            bits = weights[(0,) * weights.dim()].view(torch.int32)
            bits.fill_(change(int(bits)))
            done.set()

    hook = torch.nn.modules.module.register_module_forward_pre_hook(strike)
    done.wait()
    hook.remove()


def _jump() -> None:
    """The wall clock goes back an hour, and ten updates later two days on."""
    real, began = time.time, time.monotonic()

    def jumped() -> float:
        return real() + (-HOUR_S if time.monotonic() < began + 1 else 48 * HOUR_S)

    time.time = jumped


def _hang() -> None:
    """The training thread does not come back from its next layer."""
    import torch

    def hang(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            threading.Event().wait()

    torch.nn.modules.module.register_module_forward_pre_hook(hang)


def _hang_reading() -> None:
    """The disk does not answer any more."""
    from pipelines.stream import Stream

    def hang(self: object, i: int) -> None:
        threading.Event().wait()

    Stream._read_one = hang  # type: ignore[assignment,method-assign]


LAUNCHERS = {"launch", "torch.distributed.run"}  # Python programs, too, whose number would be 0
if FOLDER and not LAUNCHERS & set(sys.orig_argv):
    threading.Thread(target=_wait, daemon=True).start()
