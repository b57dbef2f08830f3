"""docs/troubleshooting.md has each error as it is raised today."""

import datasets
import pytest

from tests.docs.errors import ERRORS, MESSAGE, PAGE, message_of

ON_PAGE = {found[1]: found[3] for found in MESSAGE.finditer(PAGE.read_text(encoding="utf-8"))}


def test_the_page_has_ten_errors():
    assert list(ON_PAGE) == list(ERRORS)
    assert len(ON_PAGE) == 10


@pytest.mark.parametrize("name", ERRORS)
def test_the_message_is_on_the_page(tmp_path, monkeypatch, name):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert ON_PAGE[name] == message_of(name, tmp_path), "python -m tests.docs.errors writes it into the page"
