"""Where the weights come from that a run, or a teacher, starts with: a file, a run, or the hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from hvdtrain import activity
from hvdtrain.checkpoint_files import read_meta
from hvdtrain.config.data import Data
from hvdtrain.config.hub_address import hub_address
from hvdtrain.config.networks import as_made
from hvdtrain.config.schema import Config
from hvdtrain.engine.checkpoint_tensors import check_labels
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.models.counterparts import require_counterpart
from hvdtrain.models.hub import Fetched, fetch, sha256_of
from hvdtrain.models.hub_config import Published, published
from hvdtrain.models.weights import load_weights
from hvdtrain.models.weights_file import checkpoint_of
from pipelines.sources.classes import matched_rows

NOTHING_SAID = Published()


@dataclass(frozen=True)
class WeightsSource:
    """Weights on this machine and what is known of them."""

    text: str
    """As the config names them."""
    path: Path
    checkpoint: Path | None = None
    """The checkpoint that they are of, if it is one of hvdtrain's."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Of the checkpoint; empty if it cannot be read, which loading it says."""
    published: Published = NOTHING_SAID
    """What a repository of the hub says of them."""
    fetched: Fetched | None = None

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes in their order; None if they are not known."""
        return self.meta.get("data", {}).get("classes") or self.published.classes

    def origin(self) -> dict[str, str]:
        """What is recorded of them in the run."""
        found = {"source": self.text}
        if self.fetched is not None:
            found["repository"] = self.fetched.repository
            found["revision"] = self.fetched.revision
            found["file"] = self.fetched.file.name
            return {**found, "sha256": self.fetched.sha256}
        if self.checkpoint is not None:
            return {**found, "checkpoint": str(self.checkpoint)}
        return {**found, "sha256": sha256_of(self.path)} if self.path.is_file() else found

    def notes(self) -> list[str]:
        """Which weights of the hub these are, a line each; empty for others."""
        if (got := self.fetched) is None:
            return []
        lines = [
            f"{self.text}: {got.file.name} of {got.repository}, revision {got.revision}, sha256 "
            f"{got.sha256[:12]}"
        ]
        if got.from_cache:
            lines.append(
                f"{self.text}: from the cache, perhaps not the newest, as the hub was not reached "
                f"({got.from_cache})"
            )
        return lines


def find_weights(text: str, setting: str) -> WeightsSource:
    """The weights that `text` names; those of the hub are downloaded, unless they are in the cache.

    `setting`: begins the error. Raises CheckpointError or ConfigError if they cannot be had, or are of an
    NFNet of an earlier version, which computed another function.
    """
    address = hub_address(text)
    try:
        if address is not None:
            got = fetch(address)
            said = published(got.config, got.preprocessor)
            return WeightsSource(text, got.file, published=said, fetched=got)
    except CheckpointError as error:
        raise CheckpointError(f"{setting}: {text}: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from None
    path = Path(text)
    checkpoint = checkpoint_of(path)
    try:
        meta = {} if checkpoint is None else read_meta(checkpoint)
    except CheckpointError:
        meta = {}
    if checkpoint is not None and "model" in meta.get("labels", {}):
        name = str(meta["labels"]["model"]).partition(" with ")[0]
        try:
            check_labels(checkpoint, meta, {"model": as_made(name)})
        except CheckpointError as error:
            raise CheckpointError(f"{setting}: {error}") from None
    return WeightsSource(text, path, checkpoint, meta)


def start_from(
    cfg: Config, model: nn.Module, classes: list[str]
) -> tuple[list[str], dict[str, str]]:
    """Load what `model.weights` names; returns what was done, a line each, and what is recorded of it.

    `classes` are those of the model. Where the weights come with names of classes, the rows of the classifier
    are matched by name. Raises CheckpointError or ConfigError.
    """
    assert cfg.model.weights is not None
    source = find_weights(cfg.model.weights, "model.weights")
    if source.published.architecture is not None:
        try:
            require_counterpart(source.published.architecture, cfg.model.name)
        except CheckpointError as error:
            raise CheckpointError(f"model.weights: {source.text}: {error}") from None
    theirs = source.classes
    rows = None if theirs is None else matched_rows(theirs, classes)
    activity.enter("reading the weights")
    loaded = load_weights(model, source.path, rows, name=source.text)
    differs = preprocessing(source.published, cfg)
    notes = [*source.notes(), *loaded, *(f"{source.text}: {text}" for text in differs)]
    return notes, source.origin()


def preprocessing(known: Published, cfg: Config) -> list[str]:
    """A line if the images of the run are prepared otherwise than those of the weights were."""
    data: Data = cfg.data
    wanted = []
    for key in ("mean", "std"):
        theirs, own = getattr(known, key), getattr(data, key)
        if theirs is not None and any(abs(a - b) > 5e-4 for a, b in zip(theirs, own, strict=True)):
            wanted.append(f"data.{key}={theirs}".replace(" ", ""))
    warn = "warning: " if wanted else ""
    if known.crop_ratio is not None and abs(known.crop_ratio - data.val_crop_ratio) > 5e-3:
        wanted.append(f"data.val_crop_ratio={known.crop_ratio:g}")
    last = len(cfg.phases) - 1
    if known.interpolation not in (None, cfg.phases[last].interpolation):
        wanted.append(f"phases.{last}.interpolation={known.interpolation}")
    if not wanted:
        return []
    return [f"{warn}made for images that are prepared otherwise: set {' '.join(wanted)}"]
