"""One reader of calibration.json: what it accepts, and what it says of a file that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.errors import ResourceError
from hvdtrain.scaling.calibration_file import read_calibration_file

ENTRY = {"image_size": 128, "batch": 64, "images_per_second": 640, "backward_s": 0.03}
CONTENT = {"model": "resnet50", "precision": "bf16", "device": "cpu", "entries": [ENTRY]}


def content(**changes: Any) -> dict[str, Any]:
    """A calibration whose one entry is changed."""
    return {**CONTENT, "entries": [{**ENTRY, **changes}]}


def test_whole_numbers_are_speeds_and_other_keys_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({**content(note="by hand"), "date": "today"}))
    found = read_calibration_file(file, "here")
    (entry,) = found.entries
    assert (found.model, found.precision, found.device) == ("resnet50", "bf16", "cpu")
    assert (entry.images_per_second, entry.accumulate, entry.trained) == (640.0, None, 0)
    assert found.groups is None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("JFIF", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ("{}", "model: Field required"),
        ({**CONTENT, "entries": []}, "entries: List should have at least 1 item"),
        (content(batch=64.5), "entries.0.batch: Input should be a valid integer"),
        (content(batch=True), "entries.0.batch: Input should be a valid integer"),
        (content(image_size=0), "entries.0.image_size: Input should be greater than 0"),
        (content(images_per_second=float("inf")), "entries.0.images_per_second: "),
        (content(backward_s=float("nan")), "entries.0.backward_s: "),
        ({**content(release_s=[0.2, 0.1]), "groups": [4, 4]}, "not in rising order"),
        ({**content(release_s=[0.1]), "groups": [4, 4]}, "1 release_s of 2 groups"),
    ],
)
def test_another_file_is_refused_in_one_line(wrong: object, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(wrong if isinstance(wrong, str) else json.dumps(wrong))
    with pytest.raises(ResourceError) as error:
        read_calibration_file(file, "here")
    assert str(error.value).startswith("here: expected the calibration.json of a run or of ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
