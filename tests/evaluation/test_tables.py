"""Tables are Markdown, and aligned."""

from hf_distill.evaluation.tables import markdown_table, models_table, paragraph


def test_columns_are_aligned():
    assert markdown_table(["", "ms"], [["teacher", "271.25"], ["int8", "22"]]) == (
        "|         |     ms |\n| ------- | -----: |\n| teacher | 271.25 |\n| int8    |     22 |"
    )


def test_what_would_end_a_cell_is_escaped():
    assert markdown_table(["a", "b"], [["x|y", "two\nlines"]]).splitlines()[-1] == "| x\\|y | two lines |"


def test_no_rows():
    assert markdown_table(["name", "x"], []) == "| name |   x |\n| ---- | --: |"


def test_a_column_for_each_model():
    assert models_table(["teacher", "int8"], {"MB": ["271.25", "22"]}) == (
        "|     | teacher | int8 |\n| --- | ------: | ---: |\n| MB  |  271.25 |   22 |"
    )


def test_more_models_than_fit_follow_below():
    names = [f"student-number-{number}" for number in range(7)]
    tables = models_table(names, {"accuracy": [f"{number}%" for number in range(7)]}).split("\n\n")
    assert len(tables) == 3
    assert max(len(line) for table in tables for line in table.splitlines()) <= 80
    shown = [cell.strip() for table in tables for cell in table.splitlines()[-1].split("|")]
    assert [cell for cell in shown if "%" in cell] == [f"{number}%" for number in range(7)]
    assert models_table(["x" * 90], {"MB": ["1"]}).count("\n") == 2  # which nothing makes shorter


def test_paragraphs():
    text = "word " * 40 + "https://example.org/" + "a" * 80
    lines = paragraph(text).splitlines()
    assert " ".join(lines) == text
    assert max(map(len, lines[:-1])) <= 80
