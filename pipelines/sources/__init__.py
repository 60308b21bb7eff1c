"""Where encoded images come from: a numbered list of (bytes, label)."""

from pipelines.sources.base import Source, check_same_classes
from pipelines.sources.folder import ImageFolder
from pipelines.sources.opening import open_source

__all__ = ["ImageFolder", "Source", "check_same_classes", "open_source"]
