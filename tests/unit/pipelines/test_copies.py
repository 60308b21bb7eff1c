"""Which copy is read, and how many crops it enlarges."""

from __future__ import annotations

import numpy as np
import pytest

from hvdtrain.config.schema import Data, Phase
from pipelines.commands.pack import pack
from pipelines.commands.pack_options import PackOptions
from pipelines.copies import enlargement, evaluation_side, readings, training_side
from pipelines.sources import open_source


@pytest.mark.parametrize(
    ("size", "area", "side"),
    [(128, 0.08, 144), (224, 0.08, 252), (128, 0.25, 134), (224, 0.35, 225), (224, 1.0, 224)],
)
def test_training_side(size, area, side):
    assert training_side(size, area, "random_resized_crop") == side
    assert training_side(size, area, "none") == size


def test_evaluation_side():
    assert evaluation_side(224, 0.875) == 256
    assert evaluation_side(128, 0.875) == 146
    assert evaluation_side(128, 1.0) == 128


def test_enlargement_of_the_crops_drawn():
    photographs = np.full((4000, 2), (375, 500))
    for min_area, low, high in ((0.08, 0.5, 0.65), (0.35, 0.25, 0.35), (0.5, 0.0, 0.01)):
        phase = Phase(epochs=1, image_size=128, min_crop_area=min_area)
        factors = enlargement(photographs, 160, phase, Data())
        assert low <= (factors > 1).mean() <= high  # of 160x213 pixels 48 % are needed
        originals = enlargement(photographs, None, phase, Data())
        assert originals.mean() == pytest.approx(factors.mean() * 160 / 375, rel=0.01)
    whole = Data(augment="none")
    large, small = (Phase(epochs=1, image_size=size) for size in (180, 75))
    assert enlargement(photographs, 150, large, whole) == pytest.approx(180 / 30000**0.5)
    squares = photographs[:, :1].repeat(2, 1)
    assert enlargement(squares, 400, small, whole) == pytest.approx(0.2)


def test_the_plan_shows_what_each_phase_reads(folder, tmp_path):
    pack(str(folder), str(tmp_path / "p"), PackOptions((None, 32, 48)))
    source = open_source(str(tmp_path / "p"), "data.train")
    phases = [Phase(epochs=1, image_size=size) for size in (24, 40, 64)]
    found = readings(source, Data(), phases)
    assert [reading.copy for reading in found] == ["32", "48", "orig"]
    assert found[0].bytes_per_image < found[1].bytes_per_image
    assert found[0].enlarged > found[0].enlarged_from_original
    assert found[2].enlarged == found[2].enlarged_from_original
    assert found[0].text().startswith("copy 32 (")
    assert readings(open_source(str(folder), "data.train"), Data(), phases) == []
    growing = [Phase(epochs=4, image_size=[24, 44], size_multiple=4)]
    assert readings(source, Data(), growing) == [found[1]]  # up to 40
