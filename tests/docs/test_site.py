"""The built site, in `site`, loads nothing from another machine and misses none of its own files."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.docs

SITE = Path(__file__).parents[2] / "site"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""What a browser fetches by itself, by its element."""


class _Assets(HTMLParser):
    def __init__(self):
        super().__init__()
        self.urls: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.classes |= set((attributes.get("class") or "").split())
        if tag == "link" and attributes.get("rel") in ("canonical", "prev", "next"):
            return  # for readers and search engines
        if url := attributes.get(LOADED.get(tag, "")):
            self.urls.append(url)


def read(page: Path) -> _Assets:
    assets = _Assets()
    assets.feed(page.read_text(encoding="utf-8"))
    return assets


def test_there_are_pages():
    assert len(list(SITE.rglob("*.html"))) > 25, "make docs builds them"


def test_pages_load_nothing_from_elsewhere():
    for page in SITE.rglob("*.html"):
        for url in read(page).urls:
            parts = urlsplit(url)
            assert not parts.netloc, f"{page} loads {url}"
            file = SITE / parts.path[1:] if parts.path.startswith("/") else page.parent / unquote(parts.path)
            assert parts.scheme == "data" or file.is_file(), f"{page} misses {url}"


def test_the_theme_is_given_no_reason_to():
    """Its script would fetch a renderer for diagrams in Mermaid, and facts about a repository."""
    for page in SITE.rglob("*.html"):
        assert not {"mermaid", "language-mermaid", "md-source"} & read(page).classes, page


def test_styles_load_nothing_from_elsewhere():
    for style in SITE.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import\s*)[\"']?(https?:)?//", text), style
