"""What is needed to use a network's weights: its architecture, its classes, and how images are prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hvdtrain import __version__
from hvdtrain.config.data import Data
from hvdtrain.config.schema import Model
from hvdtrain.config.train import Precision, ValViews
from hvdtrain.errors import CheckpointError
from hvdtrain.plan.epochs import Epoch
from hvdtrain.run.subject import Subject

KEY = "hvdtrain"
"""Entry of a file's metadata that holds all of it as JSON."""

Channels = Annotated[list[float], Field(min_length=3, max_length=3)]


class Preprocessing(BaseModel):
    """How an image becomes the network's input."""

    model_config = ConfigDict(extra="forbid")

    image_size: Annotated[int, Field(gt=0, le=2**14)]
    """Side in pixels."""
    crop_ratio: float
    """Side of the centre crop divided by the short side of the resized image."""
    resize: Literal["crop", "stretch"]
    """As `data.val_resize`."""
    interpolation: Literal["bilinear", "bicubic"]
    """Filter of the resizing, widened by the reduction (antialiased)."""
    mean: Channels
    """Of each RGB channel (0-1), subtracted from every image."""
    std: Channels
    """Every image is divided by it afterwards."""

    @classmethod
    def of(cls, data: Data, epoch: Epoch) -> Preprocessing:
        """That of the evaluation of an epoch."""
        return cls(
            image_size=epoch.val_image_size,
            crop_ratio=data.val_crop_ratio,
            resize=data.val_resize,
            interpolation=epoch.phase.interpolation,
            mean=data.mean,
            std=data.std,
        )

    def data(self) -> Data:
        """The same as a section of a config. Raises pydantic.ValidationError for impossible values."""
        return Data(
            val_crop_ratio=self.crop_ratio,
            val_resize=self.resize,
            mean=self.mean,
            std=self.std,
        )


class Description(BaseModel):
    """A network that can be built and used; its weights are elsewhere."""

    model_config = ConfigDict(extra="forbid")

    model: Model
    num_classes: Annotated[int, Field(gt=0, le=2**24)]
    classes: list[str]
    """Names of the classes; empty if they are not known."""
    preprocessing: Preprocessing
    views: ValViews = "one"
    """Views of each image over which logits are averaged, as `train.val_views`."""
    precision: Precision = "auto"
    """In which the network is computed, as `train.precision`."""
    channels_last: bool = True

    @classmethod
    def of(cls, subject: Subject) -> Description:
        """That of a checkpoint, with the preprocessing of its evaluation.

        Raises CheckpointError if it does not say how many classes it has.
        """
        if not subject.num_classes:
            raise CheckpointError(f"{subject.path}: does not say how many classes it has")
        return cls(
            model=subject.cfg.model,
            num_classes=subject.num_classes,
            classes=subject.classes,
            preprocessing=Preprocessing.of(subject.cfg.data, subject.epoch),
            views=subject.cfg.train.val_views,
            precision=subject.cfg.train.precision,
            channels_last=subject.cfg.train.channels_last,
        )

    def metadata(self) -> dict[str, str]:
        """Entries for the header of a file; also `classes` and `preprocessing` alone, for other readers."""
        whole = self.model_dump(mode="json")
        whole["model"] |= {
            "weights": None,
            "freeze": [],
        }  # paths and training are nobody's business
        return {
            "format": "pt",
            "version": __version__,
            KEY: json.dumps(whole),
            "classes": json.dumps(self.classes),
            "preprocessing": json.dumps(whole["preprocessing"]),
        }

    @classmethod
    def read(cls, metadata: Mapping[str, Any], where: str) -> Description:
        """The description in the metadata of the file `where`. Raises CheckpointError."""
        text = metadata.get(KEY)
        if not isinstance(text, str):
            raise CheckpointError(
                f"{where}: no file of `hvdtrain export --format safetensors`: its metadata have no "
                "entry hvdtrain; name a run or a checkpoint"
            )
        try:
            found = cls.model_validate_json(text)
            found.preprocessing.data()
        except (ValidationError, RecursionError) as error:
            first: Mapping[str, Any] = (
                error.errors(include_url=False)[0] if isinstance(error, ValidationError) else {}
            )
            place = repr(".".join(map(str, first.get("loc", ())))[:60])[1:-1] or "its metadata"
            raise CheckpointError(
                f"{where}: not written by this version of hvdtrain: {place}: "
                f"{str(first.get('msg', 'too deep'))[:80]}; export it again"
            ) from None
        if found.classes and len(found.classes) != found.num_classes:
            raise CheckpointError(
                f"{where}: names {len(found.classes)} classes, but has {found.num_classes}; export it again"
            )
        return found
