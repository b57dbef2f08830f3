"""The table of tasks on the page about them. After a task has changed, `python -m tests.docs.tasks` writes it."""

import re
from pathlib import Path

from hf_distill.tasks.registry import TASKS

PAGE = Path(__file__).parents[2] / "docs" / "tasks" / "index.md"
PAGES = {"text-classification": "../text_classification.md"}
"""Pages with other names than their task's."""

TABLE = re.compile(r"(?<=<!-- tasks: begin -->\n).*(?=<!-- tasks: end -->)", flags=re.DOTALL)


def table() -> str:
    lines = ["", "| task | its models give | it reads | metrics |", "|---|---|---|---|"]
    for name, task in TASKS.items():
        metrics = "; ".join(metric.title for metric in task.quality.values())
        page = PAGES.get(name, f"{name}.md")
        lines.append(f"| [`{name}`]({page}) | {task.summary} | {task.data} | {metrics} |")
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    PAGE.write_text(TABLE.sub(lambda _: table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
