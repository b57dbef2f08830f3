"""The errors on the page about troubles: each is raised here, so that the page has the message as it is today.

After a message has changed, `python -m tests.docs.errors` puts it into the page.
"""

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import Dataset
from transformers import AutoModel

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from hf_distill.cli import main
from tests.conftest import collate, make_model, make_rows, make_text_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
MESSAGE = re.compile(r"(?<=<!-- error: )(\w+)( -->\n+```text\n)(.*?)(?=\n```)", flags=re.DOTALL)
"""A name of `ERRORS`, and its message in the block below."""


def _trainer(student: object, rows: list[dict], teacher: object = None, **options: object) -> DistillationTrainer:
    args = DistillationTrainingArguments(
        "outputs", max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, **options
    )
    return DistillationTrainer(
        student, args, train_dataset=Dataset.from_list(rows), teacher_model=teacher, data_collator=collate
    )


def _classifier(**overrides: object):
    return make_model("bert", "classification", num_layers=2, **overrides)


def no_teacher() -> None:
    _trainer(_classifier(), make_rows("classification"))


def other_labels() -> None:
    student, teacher = _classifier(id2label={0: "bad", 1: "good"}), _classifier(id2label={0: "neg", 1: "pos"})
    _trainer(student, make_rows("classification"), teacher)


def other_vocabulary() -> None:
    _trainer(_classifier(vocab_size=30522), make_rows("classification"), _classifier(vocab_size=50265))


def other_width() -> None:
    _trainer(_classifier(width=384), make_rows("classification"), _classifier(width=768))


def no_labels() -> None:
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in make_rows("classification")]
    _trainer(_classifier(), rows, _classifier()).train()


def text_labels() -> None:
    rows = Dataset.from_list(make_rows("classification")).remove_columns("labels")
    rows = rows.add_column("label", ["pos"] * len(rows))
    args = DistillationTrainingArguments("outputs", use_cpu=True, report_to="none")
    DistillationTrainer(
        _classifier(), args, train_dataset=rows, teacher_model=_classifier(), processing_class=make_text_tokenizer()
    )


def no_head() -> None:
    _saved(AutoModel.from_config(_classifier().config), "pretrained")
    _trainer(_classifier(), make_rows("classification"), "pretrained")


def unknown_option() -> None:
    Path("student.yaml").write_text("output_dir: outputs/student\ntrain_file: reviews.csv\nlearning_rte: 1.0e-4\n")
    _command("train", "student.yaml")


def missing_column() -> None:
    _reviews()
    _command("train", "--train_file", "reviews.csv", "--label_column", "stars", *_training())


def other_training() -> None:
    _reviews()
    words = ("train", "--train_file", "reviews.csv", *_training())
    _command(*words)
    _command(*words, "--learning_rate", "1e-4")


def _training() -> list[str]:
    _saved(_classifier(), "pretrained")
    options = {
        "model_name_or_path": "pretrained",
        "output_dir": "outputs/student",
        "max_steps": "1",
        "report_to": "none",
    }
    return ["--use_cpu", *(word for name, value in options.items() for word in (f"--{name}", value))]


def _reviews() -> None:
    Path("reviews.csv").write_text("text,label\nw5 w6,neg\nw7 w8,pos\n" * 4)


def _saved(model: object, folder: str) -> None:
    model.save_pretrained(folder)
    make_text_tokenizer().save_pretrained(folder)


class _LineOfCommandError(Exception):
    """What `hf-distill` says last, before it exits with 2."""


def _command(*words: str) -> None:
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(words))
    if code:
        raise _LineOfCommandError(stderr.getvalue().strip().splitlines()[-1])


ERRORS: dict[str, Callable[[], None]] = {
    raise_it.__name__: raise_it
    for raise_it in (
        no_teacher,
        other_labels,
        other_vocabulary,
        other_width,
        no_labels,
        text_labels,
        no_head,
        unknown_option,
        missing_column,
        other_training,
    )
}


def message_of(name: str, folder: str | Path) -> str:
    """The last line of what a person sees; `folder` is where the example writes its files."""
    with contextlib.chdir(folder):
        try:
            ERRORS[name]()
        except _LineOfCommandError as error:
            return str(error)
        except (ValueError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
    raise AssertionError(f"{name} raises nothing")


def write_messages() -> None:
    """Puts today's messages into the page."""

    def with_message(found: re.Match) -> str:
        with TemporaryDirectory() as folder:
            return f"{found[1]}{found[2]}{message_of(found[1], folder)}"

    PAGE.write_text(MESSAGE.sub(with_message, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write_messages()
