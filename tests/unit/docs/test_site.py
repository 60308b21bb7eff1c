"""The documentation as a site, in headless Chromium, from files: no network, no complaint, search."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.browser import CHROMIUM, Tab, opened
from tests.launch import REPOSITORY

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
    pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="no mkdocs here"),
]
SIZES = ((1280, 900), (390, 844))
RESULT = "document.querySelector('.md-search-result__link') !== null"


def build(*options: str) -> subprocess.CompletedProcess[str]:
    """What `make docs` and `make check` run, with other options after it."""
    command, again = re.findall(
        r"mkdocs (build .*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE
    )
    assert command == again
    words = [sys.executable, "-m", "mkdocs", *command.split(), *options]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, cwd=REPOSITORY, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site."""
    folder = tmp_path_factory.mktemp("site")
    done = build("-d", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with opened(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def show(tab: Tab, page: Path) -> None:
    tab.open(page.as_uri())
    tab.until(f"location.href == '{page.as_uri()}' && document.readyState == 'complete'")


def test_pages_fit_desktop_and_phone(site: Path, tab: Tab) -> None:
    """Nothing hangs out of the window sideways; wide tables and code scroll in their own box."""
    pages = sorted(set(site.rglob("*.html")) - {site / "404.html"})  # that one needs a web server
    assert len(pages) > 40
    for page in pages:
        show(tab, page)
        for size in SIZES:
            tab.size(*size)
            tab.until(f"document.documentElement.scrollWidth <= {size[0]} /* {page.name} */")
    assert not tab.complaints
    elsewhere = [url for url in tab.requests if not url.startswith(("file:", "data:", "about:"))]
    assert not elsewhere


@pytest.mark.parametrize("target", ["nowhere.md", "index.md#nowhere", "../nowhere/"])
def test_a_dead_link_fails(tmp_path: Path, target: str) -> None:
    """With the settings of the site, on a page of its own."""
    config = {"INHERIT": str(REPOSITORY / "mkdocs.yml"), "docs_dir": "docs", "site_dir": "site"}
    config |= {"nav": [{"Home": "index.md"}], "plugins": [], "hooks": []}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs/index.md"
    page.write_text("# Home\n[a link](index.md#home)\n")
    assert build("-f", str(tmp_path / "mkdocs.yml")).returncode == 0
    page.write_text(f"# Home\n[a link]({target})\n")
    done = build("-f", str(tmp_path / "mkdocs.yml"))
    assert done.returncode == 1
    assert target in done.stderr


@pytest.mark.parametrize("size", SIZES)
def test_search(site: Path, tab: Tab, size: tuple[int, int]) -> None:
    tab.size(*size)
    show(tab, site / "index.html")
    tab.value("document.querySelector('label[for=__search]').click()")
    tab.until("document.querySelector('.md-search-result__meta').innerText.includes('Type')")
    tab.value(
        "var field = document.querySelector('.md-search__input'); field.focus();"
        "field.value = 'warmup'; field.dispatchEvent(new Event('keyup')); 0"
    )
    tab.until(RESULT)
    found = tab.value("document.querySelector('.md-search-result__list').innerText")
    assert "warmup" in found.lower()
    assert not tab.complaints
