"""Sources: datasets on disk as numbered lists of (encoded bytes, label).

Read `base.py` (what a source is) first, then `opening.py` (which source reads a path).
"""

from pipelines.sources.base import Source
from pipelines.sources.folder import ImageFolder
from pipelines.sources.opening import open_source

__all__ = ["ImageFolder", "Source", "open_source"]
