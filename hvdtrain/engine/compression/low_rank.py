"""Which gradients PowerSGD compresses, and to what size: arithmetic without torch."""

from __future__ import annotations

SAVED = 2
"""A matrix is compressed if it is more than this many times as large as its two factors together."""


def is_compressed(rows: int, columns: int, rank: int) -> bool:
    """Whether a gradient [rows, columns] is sent as two factors of `rank` columns."""
    return rows * columns > SAVED * rank * (rows + columns)


def matrix_shape(shape: list[int]) -> tuple[int, int] | None:
    """Rows and columns of a tensor as a matrix: a row for each output. None with less than two dimensions."""
    if len(shape) < 2 or 0 in shape:
        return None
    columns = 1
    for side in shape[1:]:
        columns *= side
    return shape[0], columns
