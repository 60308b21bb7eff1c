"""How `model.weights` names a repository of the Hugging Face hub; nothing is looked up here."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from hvdtrain.config.fields import PathText

TIMM, HUB = "timm:", "hf:"
FORMS = "timm:NAME.TAG, such as timm:resnet50.a1_in1k, or hf:ORG/NAME, each perhaps with @REVISION"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REVISION = r"[A-Za-z0-9][\w./-]{0,199}"


class HubAddress(NamedTuple):
    """A repository on the hub."""

    text: str
    """As it was given."""
    repository: str
    """ORG/NAME."""
    revision: str | None
    """A branch, a tag or a commit; None: the main branch."""
    needs_tag: bool
    """It is one of timm's networks without a tag, which says which of its weights are meant."""


def hub_address(text: str) -> HubAddress | None:
    """The repository that `text` names; None for the path of a file or folder.

    Raises ValueError for one that begins as an address and is none.
    """
    if not text.startswith((TIMM, HUB)):
        return None
    kind, _, rest = text.partition(":")
    name, at, revision = rest.partition("@")
    form = _PART if kind == "timm" else f"{_PART}/{_PART}"
    whole = re.fullmatch(form, name) and (not at or re.fullmatch(_REVISION, revision))
    if not whole or any(bad in rest for bad in ("..", "--", "//")) or name.endswith((".", "-")):
        raise ValueError(f"expected {FORMS}; the path of a file of such a name begins with ./")
    repository = name if kind == "hf" else f"timm/{name}"
    needs_tag = kind == "timm" and "." not in name
    return HubAddress(text, repository, revision or None, needs_tag)


def _checked(text: str) -> str:
    hub_address(text)
    return text


WeightsText = Annotated[PathText, AfterValidator(_checked)]
"""The path of weights, or the address of a repository on the hub."""
