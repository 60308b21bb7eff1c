"""What a thread is at, judged by its stack: so that the loop need not say it at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

PACKAGES = ("hvdtrain", "pipelines")
COLLECTIVES = ("hvdtrain.comm.horovod", "hvdtrain.comm.torch_distributed")
QUEUE = "pipelines.channel"
"""Where a thread waits for a batch that others make."""


@dataclass(frozen=True)
class Standing:
    """What a thread is at."""

    doing: str
    for_ranks: bool = False
    """It waits for other ranks, so the fault is most likely not its own."""


def standing(innermost: FrameType | None, images: str = "") -> Standing:
    """What the thread with this innermost frame is at; `images`: what the next batch waits for."""
    for frame in _outwards(innermost):
        module = str(frame.f_globals.get("__name__", ""))
        if module in COLLECTIVES:
            return Standing("waiting for the other ranks", for_ranks=True)
        if module == QUEUE:
            return Standing(f"waiting for images: {images}" if images else "waiting for images")
        if module.partition(".")[0] in PACKAGES:
            return Standing(f"in {module}, line {frame.f_lineno} ({frame.f_code.co_name})")
    return Standing("outside of hvdtrain's own code")


def stack_lines(innermost: FrameType | None) -> list[str]:
    """The stack, one line a frame, innermost first; reads no source file, whose disk may hang."""
    return [
        f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}'
        for frame in _outwards(innermost)
    ]


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
