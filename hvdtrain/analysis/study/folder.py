"""The folder of a study: its files, and `study.json`, which is checked before it is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hvdtrain.errors import ResourceError
from hvdtrain.files import write_atomically
from hvdtrain.telemetry.reports import json_text

Count = Annotated[int, Field(ge=0, lt=2**31)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Asked(_Part):
    kind: Literal["batch-size", "lr-batch", "parallel"]
    batches: list[Count]
    scalings: list[str]
    seeds: Count
    rates: list[float]
    ranks: list[Count]
    threads: Count
    halving: bool
    config: dict[str, Any]


class _Pairs(_Part):
    pairs: Count
    together: float | None
    apart: float | None
    ratio: float | None
    noise_scale: float | None


class _Content(_Part):
    """What a study writes; results and groups are never read again."""

    asked: _Asked
    diverged: dict[str, str] = {}
    gradients: dict[str, dict[str, _Pairs]] = {}


@dataclass(frozen=True)
class Folder:
    """The files of a study, all below `root`."""

    root: Path

    @property
    def study(self) -> Path:
        """What was asked, how members ended, and the results."""
        return self.root / "study.json"

    @property
    def config(self) -> Path:
        """The config that the members share, resolved."""
        return self.root / "config.yaml"

    @property
    def table(self) -> Path:
        """One line for each member."""
        return self.root / "study.csv"

    @property
    def page(self) -> Path:
        """The report."""
        return self.root / "report.html"

    @property
    def pictures(self) -> Path:
        """Every picture of the report as PNG and SVG."""
        return self.root / "pictures"

    def run(self, name: str) -> Path:
        """The run directory of a member."""
        return self.root / "members" / name

    def log(self, name: str) -> Path:
        """What a member has printed."""
        return self.root / "members" / f"{name}.log"

    def read(self) -> dict[str, Any]:
        """The content of `study.json`; empty if there is none. Raises ResourceError if it is damaged."""
        try:
            content = json.loads(self.study.read_bytes())
            _Content.model_validate(content)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            why = "it is not what hvdtrain study writes" if isinstance(error, ValueError) else error
            raise ResourceError(
                f"{self.study}: cannot be read: {why}: name another folder with --output"
            ) from None
        found: dict[str, Any] = content
        return found

    def write(self, **parts: Any) -> None:
        """Replace parts of `study.json`. Raises ResourceError."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{self.root}: cannot be written: {error.strerror}") from None
        text = json_text({**self.read(), **parts}, indent=1)
        write_atomically(self.study, text.encode())
