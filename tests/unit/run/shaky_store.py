"""An object store in memory that can be made to fail at any operation.

As in S3, an object is there when its upload is completed, and an upload that nobody uses any more is
completed as it is: that is how the files of fsspec behave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


class ShakyStore(AbstractFileSystem):
    """`fault(operation, path)` is called before each operation, and may raise or wait."""

    protocol = "memory"
    objects: ClassVar[dict[str, bytes]] = {}
    done: ClassVar[list[tuple[str, str, int]]] = []
    """Operation, path, and bytes that are transferred."""
    fault: ClassVar[Callable[[str, str], object]]
    changed: ClassVar[Callable[[str, bytes], bytes]]
    """What a read returns in place of the data of a path."""

    @classmethod
    def reset(cls) -> None:
        """Empty, and without faults."""
        cls.objects.clear()
        cls.done.clear()
        cls.fault = staticmethod(lambda operation, path: None)
        cls.changed = staticmethod(lambda path, data: data)

    @classmethod
    def begin(cls, operation: str, path: str, size: int = 0) -> None:
        """Note an operation, and let it fail."""
        cls.done.append((operation, path, size))
        cls.fault(operation, path)

    def open(self, path: str, mode: str = "rb", block_size: Any = None, **_: Any) -> Any:
        """For writing alone."""
        assert mode == "wb"
        self.begin("open", path)
        return Upload(self, path, mode, block_size)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.objects[path]), "type": "file"}

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        self.begin("read", path, end - start)
        return self.changed(path, self.objects[path][start:end])

    def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        self.begin("write", path, len(value))
        self.objects[path] = value

    def find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        self.begin("list", path)
        return {one: self.info(one) for one in self.objects if one.startswith(f"{path}/")}

    def rm_file(self, path: str) -> None:
        self.begin("delete", path)
        if self.objects.pop(path, None) is None:
            raise FileNotFoundError(path)


class Upload(AbstractBufferedFile):
    """An upload in parts."""

    def _initiate_upload(self) -> None:
        self.fs.begin("begin", self.path)
        self.parts: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        self.fs.begin("part", self.path, len(self.buffer.getvalue()))
        self.parts.append(self.buffer.getvalue())
        if final:
            self.fs.begin("complete", self.path)
            self.fs.objects[self.path] = b"".join(self.parts)
        return True
