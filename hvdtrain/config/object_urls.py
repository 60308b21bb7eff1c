"""URLs of object stores: which are taken, and the package that reaches each. Imports none of them."""

from __future__ import annotations

import importlib
import re
from typing import Any, NamedTuple

from hvdtrain.errors import ConfigError


class Client(NamedTuple):
    """The class that reaches a kind of store, with the interface of fsspec."""

    module: str
    name: str
    extra: str
    """Of hvdtrain: it installs the module."""


_GOOGLE = Client("gcsfs", "GCSFileSystem", "gs")
_AZURE = Client("adlfs", "AzureBlobFileSystem", "az")
CLIENTS = {
    "s3": Client("s3fs", "S3FileSystem", "s3"),
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
    "az": _AZURE,
    "abfs": _AZURE,
}
"""By protocol. No other name leads to an import: fsspec itself would import what any package
registers."""
MAX_URL = 1000
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}")
_PART = re.compile(r"[\w.~!$&'()+,;=: -]+")
"""A part of the path: no wildcards, no query and no fragment."""


def is_url(text: str) -> bool:
    """Whether it is meant for a URL, not for the path of a folder."""
    return "://" in text


def check_url(text: str) -> str:
    """`text` without a slash at its end. Raises ValueError, which does not repeat it: it may be secret."""
    protocol, _, rest = text.partition("://")
    if protocol not in CLIENTS:
        known = ", ".join(f"{name}://" for name in CLIENTS)
        raise ValueError(f"expected a folder, or a URL with {known}")
    bucket, *parts = rest.rstrip("/").split("/")
    if ":" in bucket or any(sign in rest for sign in "@?#"):
        raise ValueError(
            f"a user, password or key in a URL is refused: expected {protocol}://BUCKET/PREFIX; "
            "credentials come from the environment or from files of their own"
        )
    fits = _BUCKET.fullmatch(bucket) and len(text) <= MAX_URL and "::" not in rest
    if not fits or not all(_PART.fullmatch(part) and part.strip(".") for part in parts):
        raise ValueError(f"expected {protocol}://BUCKET or {protocol}://BUCKET/PREFIX")
    return text.rstrip("/")


DATA = ("http", "https", "s3", "gs", "gcs")
"""Protocols of datasets."""
_DATA_HOST = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}(:\d{1,5})?|\[[0-9A-Fa-f:]{2,40}\](:\d{1,5})?"
)
_DATA_PART = re.compile(r"[\w.~!$&'()+,;=: %{}*\[\]-]+")
"""A part of the path, possibly of a pattern of shards."""


def check_data_url(text: str) -> str:
    """The URL of a dataset without a slash at its end. Raises ValueError, which does not repeat it: it may be
    secret."""
    protocol, _, rest = text.partition("://")
    if protocol not in DATA:
        known = ", ".join(f"{name}://" for name in DATA)
        raise ValueError(f"expected a path, or a URL with {known}")
    if "@" in rest:
        raise ValueError(
            "a user or password in a URL is refused: credentials come from files of their own (~/.netrc, ~/.aws, "
            "Google's application default credentials) or the environment"
        )
    if "?" in rest or "#" in rest:
        raise ValueError(
            "a URL with ? or # is refused: what follows may be a signature, and is no part of a name"
        )
    host, *parts = rest.rstrip("/").split("/")
    fits = (
        _DATA_HOST.fullmatch(host)
        and len(text) <= MAX_URL
        and ("http" in protocol or ":" not in host)
    )
    if (
        not fits
        or ("http" in protocol and not parts)
        or not all(_DATA_PART.fullmatch(part) and part.strip(".") for part in parts)
    ):
        raise ValueError(f"expected {protocol}://{'HOST' if 'http' in protocol else 'BUCKET'}/PATH")
    return text.rstrip("/")


def client(url: str) -> Any:
    """The class for a URL that was checked. Raises ConfigError if it cannot be imported."""
    protocol = url.partition("://")[0]
    module, name, extra = CLIENTS[protocol]
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"checkpoint.mirror: {protocol}:// needs {module}, which cannot be imported ({reason}): "
            f"pip install 'hvdtrain[{extra}]', or pip install {module}"
        ) from None
