"""Prepared images as small pictures in a page."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image

from hvdtrain.inference.description import Preprocessing

SIDE = 144
"""Longest side of a picture in pixels."""


def data_url(image: torch.Tensor, how: Preprocessing) -> str:
    """The pixels [3, H, W] that the network saw, normalised as `how` says, as a JPEG in a `data:` URL.

    Small images are enlarged without smoothing, so that each pixel is seen.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    levels = (image.float().cpu() * std + mean).clamp(0, 1).mul(255).round()
    picture = Image.fromarray(levels.byte().permute(1, 2, 0).contiguous().numpy().astype(np.uint8))
    width, height = picture.size
    scale = SIDE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smooth = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    file = io.BytesIO()
    picture.resize(size, smooth).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
