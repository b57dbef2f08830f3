"""The page about tasks has every task."""

from hf_distill.tasks.registry import TASKS
from tests.docs.tasks import PAGE, PAGES, TABLE, table


def test_the_table_of_tasks():
    """If it fails: python -m tests.docs.tasks."""
    assert TABLE.search(PAGE.read_text(encoding="utf-8")).group() == table()


def test_every_task_has_its_page():
    assert [name for name in TASKS if not (PAGE.parent / PAGES.get(name, f"{name}.md")).is_file()] == []
