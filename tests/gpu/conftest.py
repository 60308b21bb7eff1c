"""Tests here need a GPU and are skipped without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def gpu() -> Iterator[torch.device]:
    """The first GPU, convolving in full fp32 so that it can be compared with the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield torch.device("cuda", 0)
