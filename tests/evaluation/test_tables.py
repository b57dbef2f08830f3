"""Tables are Markdown, and aligned."""

from hf_distill.evaluation.tables import markdown_table


def test_columns_are_aligned():
    assert markdown_table(["", "ms"], [["teacher", "271.25"], ["int8", "22"]]) == (
        "|         |     ms |\n| ------- | -----: |\n| teacher | 271.25 |\n| int8    |     22 |"
    )


def test_what_would_end_a_cell_is_escaped():
    assert markdown_table(["a", "b"], [["x|y", "two\nlines"]]).splitlines()[-1] == "| x\\|y | two lines |"


def test_no_rows():
    assert markdown_table(["name", "x"], []) == "| name |   x |\n| ---- | --: |"
