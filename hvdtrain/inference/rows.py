"""Predictions as lines of text, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Literal

from hvdtrain.inference.classifier import Prediction
from pipelines.sources.left_out import printable

Format = Literal["text", "csv", "json"]


def text_row(prediction: Prediction) -> str:
    """The name, then each class with its probability; or why there is none."""
    name = printable(prediction.name)
    if prediction.fault is not None:
        return f"{name}  not predicted ({prediction.fault.reason}): {printable(prediction.fault.detail)}"
    each = zip(prediction.classes, prediction.probabilities, strict=True)
    return "  ".join([name, *(f"{printable(label)} {share:.4f}" for label, share in each)])


def json_row(prediction: Prediction) -> str:
    """A JSON object in one line."""
    return json.dumps(as_dict(prediction))


def as_dict(prediction: Prediction) -> dict[str, object]:
    """The fields of one JSON object."""
    fault = prediction.fault
    each = zip(prediction.classes, prediction.labels, prediction.probabilities, strict=True)
    return {
        "image": prediction.name,
        "classes": [
            {"class": name, "label": label, "probability": round(share, 7)}
            for name, label, share in each
        ],
        "fault": None if fault is None else {"reason": fault.reason, "detail": fault.detail},
    }


def csv_row(prediction: Prediction, top: int) -> str:
    """Name, fault, then class and probability, `top` times."""
    fault = prediction.fault
    cells = [prediction.name, "" if fault is None else f"{fault.reason}: {fault.detail}"]
    for name, share in zip(prediction.classes, prediction.probabilities, strict=True):
        cells += [name, f"{share:.7f}"]
    cells += [""] * (2 + 2 * top - len(cells))
    return _csv(cells)


def csv_head(top: int) -> str:
    """The names of the columns."""
    columns = [f"{what}_{k}" for k in range(1, top + 1) for what in ("class", "probability")]
    return _csv(["image", "fault", *columns])


def writer(form: Format, top: int) -> tuple[list[str], Callable[[Prediction], str]]:
    """The first lines, and what makes the line of a prediction."""
    if form == "csv":
        return [csv_head(top)], lambda one: csv_row(one, top)
    return [], json_row if form == "json" else text_row


def _csv(cells: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
