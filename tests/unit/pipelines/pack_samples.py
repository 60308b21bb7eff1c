"""What packing tests share: one choice of copies, and the contents of a folder."""

from __future__ import annotations

from pathlib import Path

from pipelines.commands.pack_options import PackOptions

TWO = PackOptions((None, 48, 32), shard_images=4, threads=2)


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}
