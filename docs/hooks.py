"""Hook of mkdocs: pages link to files of the repository that are not pages of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)\)")
SHOWN = {ROOT / "slurm/README.md": "how-to/slurm.md"}
"""File → the page of the site that shows it."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link to a file outside of `docs` becomes its text, or leads to the page that shows the file.

    A link to a file that does not exist stays as it is: mkdocs reports it.
    """
    here = page.file.src_uri
    folder = (ROOT / "docs" / here).parent
    for file, name in SHOWN.items():
        if name == here:
            markdown, folder = file.read_text(), file.parent

    def replace(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = (folder / target).resolve()
        if "://" in target or not path.exists() or path.is_relative_to(ROOT / "docs"):
            return link[0]
        if path in SHOWN:
            return f"[{text}]({'../' * here.count('/')}{SHOWN[path]})"
        return text

    # A list that follows its paragraph without an empty line is a list on the repository's pages.
    markdown = re.sub(r"^(?!- |  )(.*\S.*)\n(?=- )", r"\1\n\n", markdown, flags=re.MULTILINE)
    return LINK.sub(replace, markdown)
