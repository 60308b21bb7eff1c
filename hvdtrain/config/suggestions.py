"""What to say of a key or value that does not fit the schema: the key that was probably meant."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from hvdtrain.config.object_urls import check_data_url, is_url
from hvdtrain.config.overrides import printable
from hvdtrain.config.schema import Config
from hvdtrain.config.yaml_source import KeyPath

USUAL_NAMES = {
    "amp": "train.precision",
    "batch": "phases.0.batch_per_worker",
    "batch_size": "phases.0.batch_per_worker",
    "bs": "phases.0.batch_per_worker",
    "classes": "model.num_classes",
    "dataset": "data.train",
    "ema": "train.ema_decay",
    "grad_accum": "train.accumulate",
    "img_size": "phases.0.image_size",
    "learning_rate": "lr.base",
    "pretrained": "model.weights",
    "size": "phases.0.image_size",
    "val_data": "data.val",
    "wd": "optimizer.weight_decay",
    "workers": "data.decode_threads",
    "num_workers": "data.decode_threads",
}
"""What other trainers call a field."""

FIRST_FIELDS = {
    "checkpoint": "every_epochs",
    "comm": "compression",
    "data": "train",
    "lr": "base",
    "metrics": "port",
    "model": "name",
    "optimizer": "name",
    "train": "precision",
}
"""The field that somebody means who gives a value to a whole section."""


def is_text(path: KeyPath) -> bool:
    """Whether the field at `path` holds free text; such values need no quotes on a command line."""
    annotation = _annotation(path)
    if get_origin(annotation) is list:  # of texts: written in brackets
        return False
    kinds = {_plain(kind) for kind in get_args(annotation) or (annotation,)}
    return str in kinds <= {str, float, type(None)}


def takes_number(path: KeyPath) -> bool:
    """Whether the text field at `path` takes a number besides."""
    annotation = _annotation(path)
    return is_text(path) and float in {_plain(kind) for kind in get_args(annotation)}


def unknown_key(path: KeyPath) -> str:
    """The message for a key that the schema lacks, with the nearest one that it has."""
    last = str(path[-1])
    section = _annotation(path[:-1])
    known = list(section.model_fields) if _is_section(section) else []
    near = difflib.get_close_matches(last, known, n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    elsewhere = USUAL_NAMES.get(last.lower()) or _leaf(last)
    if elsewhere is not None:
        return f"unknown key; did you mean {elsewhere}?"
    return f"unknown key; known here: {', '.join(known)}"


def wrong_value(path: KeyPath, kind: str, text: str, value: Any) -> str:
    """The message for a value that does not fit; `kind` and `text` are pydantic's."""
    if isinstance(value, (dict, list)):
        return text.removeprefix("Value error, ")
    shown = printable(repr(value))
    if path == ("data", "val"):
        return _wrong_share(shown, value)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        key = ".".join(map(str, path))
        meant = f"{key}.{FIRST_FIELDS[key]}" if key in FIRST_FIELDS else f"{key}.FIELD"
        return f"is a section, found {shown}; did you mean {meant}={printable(value)}?"
    if kind == "string_type" and value is not None:
        return f'expected text, found {shown}: write it in quotes, "{printable(value)}"'
    text = text.removeprefix("Value error, ")
    return f"{text[0].lower()}{text[1:]}, found {shown}"


def _wrong_share(shown: str, value: Any) -> str:
    """The message for a value of data.val."""
    if isinstance(value, str) and is_url(value):
        try:
            check_data_url(value)
        except ValueError as error:
            return f"{error}, found {shown}"
    text = f"expected a path, or the share of data.train to hold out, above 0 and below 1, found {shown}"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{text}; a folder of that name is ./{value:g}" if is_number else text


def _annotation(path: KeyPath) -> Any:
    """The type of the field at `path`; None if there is no such field."""
    annotation: Any = Config
    for part in path:
        if _is_section(annotation):
            field = annotation.model_fields.get(part) if isinstance(part, str) else None
            annotation = field.annotation if field is not None else None
        elif isinstance(part, int) and get_origin(annotation) is list:
            annotation = get_args(annotation)[0]
        else:
            return None
    return annotation


def _plain(kind: Any) -> Any:
    """A type without what `Annotated` adds to it."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _leaf(name: str) -> str | None:
    """The only field of that name in some section, with its path; else one of a like name."""
    paths: dict[str, str] = {}
    for section, field in Config.model_fields.items():
        annotation, prefix = field.annotation, section
        if get_origin(annotation) is list:
            annotation, prefix = get_args(annotation)[0], f"{section}.0"
        if _is_section(annotation):
            for leaf in annotation.model_fields:  # type: ignore[union-attr]
                paths.setdefault(leaf, f"{prefix}.{leaf}")
    near = difflib.get_close_matches(name.lower(), list(paths), n=1, cutoff=0.8)
    return paths[near[0]] if near else None
