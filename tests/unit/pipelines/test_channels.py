"""Mean and deviation of the colours that `data scan` proposes, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from PIL import Image

from hvdtrain.cli.data import _scan_text
from hvdtrain.config.load import parse_config
from pipelines.commands import channels
from pipelines.commands.channels import moments
from pipelines.commands.scan import scan

SIDE = 20


@pytest.fixture
def pictures(tmp_path):
    """Noise of other levels and deviations in each channel, as PNG files, and all of its levels."""
    random = np.random.default_rng(0)
    levels = random.normal([60, 120, 200], [10, 20, 25], (30, SIDE, SIDE, 3))
    pixels = np.clip(levels, 0, 255).astype(np.uint8)
    for k, one in enumerate(pixels):
        folder = tmp_path / str(k % 2)
        folder.mkdir(exist_ok=True)
        Image.fromarray(one).save(folder / f"{k:02}.png")
    (tmp_path / "0/bad.png").write_bytes(b"no image")
    return tmp_path, pixels / 255


def test_the_proposal_is_what_numpy_computes(pictures):
    root, pixels = pictures
    report = scan(str(root), None, 1)
    assert report.channels.images == 30
    assert np.allclose(report.channels.mean, pixels.mean((0, 1, 2)), atol=1e-12)
    assert np.allclose(report.channels.std, pixels.std((0, 1, 2)), atol=1e-12)
    text = _scan_text(report)
    assert "colours     of all 30 good images" in text
    lines = "\n".join(line for line in text.splitlines() if line.startswith(("  mean:", "  std:")))
    data = parse_config(f"data:\n{lines}\nphases: [{{epochs: 1}}]").data
    assert np.allclose(data.mean, pixels.mean((0, 1, 2)), atol=6e-5)
    assert yaml.safe_load(lines)["std"] == data.std


def test_images_of_other_sizes_count_the_same(tmp_path):
    sizes, levels = [(5, 9), (40, 3), (1, 1)], [30, 90, 240]
    for k, (size, level) in enumerate(zip(sizes, levels, strict=True)):
        Image.new("RGB", size, (level, level, level)).save(tmp_path / f"{k}.png")
    found = scan(str(tmp_path), None, 1).channels
    assert np.allclose(found.mean, np.mean(levels) / 255)
    assert np.allclose(found.std, np.std(levels) / 255)


def test_of_many_images_a_part_is_measured(pictures, monkeypatch):
    root, pixels = pictures
    monkeypatch.setattr(channels, "MOST", 20)
    report = scan(str(root), None, 1)
    assert report.channels.images in (19, 20)  # the bad one may be drawn
    assert np.allclose(report.channels.mean, pixels.mean((0, 1, 2)), atol=0.01)
    assert f"of drawn at random: {report.channels.images} good images" in _scan_text(report)
    assert channels.drawn(1000).sum() == 20


@pytest.mark.parametrize("size", [(7, 5), (40_000, 3)])
def test_sums_are_exact(size):
    """Also where squares no longer fit into 32 bits."""
    pixels = np.random.default_rng(1).integers(200, 256, (*size, 3), np.uint8)
    wide = pixels.astype(np.float64)
    expected = np.stack([wide.mean((0, 1)), (wide**2).mean((0, 1))])
    assert np.allclose(moments(pixels), expected, rtol=1e-12)


def test_images_of_one_colour_propose_nothing(tmp_path):
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "1.png")
    report = scan(str(tmp_path), None, 1)
    assert report.channels is None
    assert "colours" not in _scan_text(report)
