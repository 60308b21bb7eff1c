"""A page with all predicted images: each with its most probable classes."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from hvdtrain import __version__
from hvdtrain.files import write_atomically
from hvdtrain.inference.classifier import Classifier, Prediction
from hvdtrain.inference.pictures import data_url
from hvdtrain.report.html import fill
from pipelines.sources.left_out import printable

MOST = 1000
"""Images on one page: about 6 MB."""
SHOWN = 3
"""Classes under each image."""


class ContactSheet:
    """Collects what the page shows."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._cards: list[dict[str, object]] = []
        self._bad: list[tuple[str, str, str]] = []
        self._count = 0

    def add(self, prediction: Prediction, image: torch.Tensor | None) -> None:
        """Note one image; beyond `MOST` only its number."""
        self._count += 1
        if self._count > MOST:
            return
        if image is None or prediction.fault is not None:
            assert prediction.fault is not None
            fault = prediction.fault
            self._bad.append((printable(prediction.name), fault.reason, printable(fault.detail)))
            return
        best = zip(prediction.classes[:SHOWN], prediction.probabilities[:SHOWN], strict=True)
        self._cards.append(
            {
                "picture": data_url(image, self._classifier.about.preprocessing),
                "name": printable(Path(prediction.name).name),
                "path": printable(prediction.name),
                "classes": [(printable(name), share) for name, share in best],
            }
        )

    def write(self, page: Path) -> None:
        """Write the page. Raises ResourceError if it cannot be written."""
        text = fill(
            "predictions.html",
            title=f"{self._count:,} {'image' if self._count == 1 else 'images'}",
            kind="predictions",
            version=__version__,
            now=time.time(),
            source=printable(str(self._classifier.source)),
            count=self._count,
            left_out=max(0, self._count - MOST),
            cards=self._cards,
            bad=self._bad,
        )
        write_atomically(page, text.encode("utf-8", errors="replace"))
