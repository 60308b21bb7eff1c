"""Bytes that groups of gradients have on the network, by `comm.compression`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hvdtrain.config.schema import Config
from hvdtrain.engine.compression.low_rank import is_compressed
from hvdtrain.errors import ConfigError
from hvdtrain.scaling.overlap import Group

_FP32 = 4


@dataclass(frozen=True)
class Wire:
    """How gradients are sent."""

    ratio: float = 1.0
    """Bytes sent divided by bytes in fp32, of what is not compressed."""
    rank: int = 0
    """Of PowerSGD; 0: without."""

    def sums(self, group: Group) -> tuple[float, float]:
        """Bytes of a group's first sum, and of the second that follows it (0: there is none).

        Raises ConfigError for PowerSGD where the shapes of the gradients are not known.
        """
        if not self.rank:
            return group.size_bytes * self.ratio, 0.0
        if group.matrices is None:
            raise ConfigError(
                "comm.compression: powersgd: the shapes of the gradients are not known: give a calibration.json "
                "that this version's hvdtrain scaling calibrate has made"
            )
        small = [shape for shape in group.matrices if is_compressed(*shape, self.rank)]
        whole = group.size_bytes - _FP32 * sum(rows * columns for rows, columns in small)
        left, right = (sum(shape[side] for shape in small) for side in (0, 1))
        return whole + _FP32 * self.rank * left, float(_FP32 * self.rank * right)

    def total(self, groups: Iterable[Group]) -> float:
        """Bytes of all sums of an update."""
        return sum(sum(self.sums(group)) for group in groups)


def wire_of(cfg: Config) -> Wire:
    """How a run of `cfg` sends gradients; `auto` counts as fp16, which it chooses on slow links."""
    if cfg.comm.compression == "powersgd":
        return Wire(rank=cfg.comm.powersgd_rank)
    return Wire(1.0 if cfg.comm.compression == "none" else 0.5)
