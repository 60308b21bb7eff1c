"""Clipping by the norm of the whole gradient."""

from __future__ import annotations

import torch


def clip_(flats: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale all gradients so that their common L2 norm is at most `max_norm`; returns the norm."""
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack([flat.norm() for flat in flats]))
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for flat in flats:
        flat.mul_(factor)
    return norm
