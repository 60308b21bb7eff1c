"""The commands on the pages of the documentation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.launch import REPOSITORY

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "slurm/README.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
BUILTINS = {"cd", ".", "export"}
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    """One command of a block; `words` without redirections and comments."""

    page: Path
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def inner(self) -> tuple[str, ...]:
        """From `hvdtrain` on, where a launcher starts it; empty for another program."""
        if "hvdtrain" not in self.words or self.words[0] == "git":
            return ()
        return self.words[self.words.index("hvdtrain") :]


def commands(page: Path) -> Iterator[Command]:
    """Those in blocks without a language, and behind `$` in `console` blocks, in their order."""
    for language, block in _FENCE.findall(page.read_text()):
        lines = block.replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        elif language:
            continue
        for line in lines:
            for words in _split(line):
                if words[0] not in BUILTINS:
                    yield Command(page, tuple(words))


def _split(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, "&&"]:
        if word in ("&&", "||"):
            if words:
                yield words[: words.index(">")] if ">" in words else words
            words = []
        elif word != "…":
            words.append(word)
