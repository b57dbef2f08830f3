"""Loads texts whose words have tags, such as named entities and parts of speech: from words, CoNLL files and spans."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.data.reading import check_texts, read_rows, read_text
from hf_distill.data.showing import listed, short
from hf_distill.words import Span, is_prefixed, split_words, words_read

CONLL = (".conll", ".bio", ".iob", ".iob2", ".txt")
"""Suffixes of files with one word per line."""

DOCUMENT = "-DOCSTART-"
OUTSIDE = "O"
FEATURES = Features(
    {
        "text": Value("string"),
        "starts": List(Value("int32")),
        "ends": List(Value("int32")),
        "labels": List(Value("int64")),
    }
)

Tag = int | str


@dataclass
class TaggedText:
    """A text with its words and their tags. `tags` is None if they are unknown; so is a tag of -100."""

    text: str
    words: list[Span]
    tags: list[Tag] | None
    where: str


def load_tagged_words(
    source: str | Path,
    tokens_column: str = "tokens",
    tags_column: str = "ner_tags",
    text_column: str = "text",
    spans_column: str | None = None,
    label_names: Sequence[str] | None = None,
    split: str = "train",
    config_name: str | None = None,
) -> tuple[Dataset, list[str]]:
    """Loads texts with a tag for each word, and finds the names of the tags.

    There are three kinds of data:

    - words and tags: a column with lists of words, and a column with lists of tags, as names or as class numbers;
    - CoNLL files (.conll, .bio, .iob, .iob2, .txt): one word per line, the word first and its tag last, separated by
      spaces or tabs, and a blank line after each sentence. Lines that begin with `-DOCSTART-` are left out;
    - texts with spans, if `spans_column` is given: a column with texts, and a column with lists of
      `{"start", "end", "label"}` in characters. A text is split at spaces, marks and the edges of spans. The first word
      of a span with the label `PER` gets the tag `B-PER`, its other words `I-PER`, and words outside spans `O`.

    Tags are either `O` and names with `B-` or `I-` (BIO, also called IOB2, IOB1 or IO), or plain names, such as
    parts of speech.

    Args:
        source: a .json, .jsonl or .parquet file, a CoNLL file, a folder that `datasets.load_dataset` reads, or a Hub
            name.
        tokens_column: column with the words of each text. Not used for CoNLL files.
        tags_column: column with the tags of the words. Not used for CoNLL files. The tag -100 marks an unknown tag.
        text_column: column with the texts, if there are spans.
        spans_column: column with the spans, such as `entities`. Default: the data have words and tags.
        label_names: names of the tags in the order of their numbers, from a model or the training data. Default: the
            tags found in the source.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.

    Returns:
        A dataset with the columns `text`, `starts` and `ends` (characters of each word) and `labels` (tag number of
        each word, a `ClassLabel`, -100 if unknown), and the names of the tags in the order of their numbers. Given
        words are joined by one space. `ClassLabel` names keep their order. Other names are sorted, with `O` first and
        both tags of a kind next to each other. Plain numbers get the names `LABEL_0` and so on.

    Raises:
        ValueError: if a file is missing, empty or unreadable; if a column is missing; if words and tags differ in
            number; if a word is empty; if spans overlap, leave the text or have no words; or if a tag is not in
            `label_names` or has another scheme than the others. The error names the row, counted from 1.

    Example:
        >>> train, names = load_tagged_words("train.conll")
        >>> names
        ['O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER']
        >>> notes, names = load_tagged_words("notes.jsonl", spans_column="entities")
    """
    texts, own_names = _read(source, tokens_column, tags_column, text_column, spans_column, split, config_name)
    found = {tag: text.where for text in reversed(texts) for tag in text.tags or () if tag != IGNORE_INDEX}
    names = list(label_names or own_names or _name_tags(found, source))
    if len(names) < 2:
        raise ValueError(f"{source} has only the tag {', '.join(names) or '-100'}: training needs at least two.")
    numbers = {tag: _number(tag, own_names, names, where) for tag, where in found.items()}
    numbers[IGNORE_INDEX] = IGNORE_INDEX
    _check_scheme(
        names, {names[number]: where for tag, where in found.items() if (number := numbers[tag]) >= 0}, source
    )
    return _dataset(texts, [[numbers[tag] for tag in text.tags or ()] for text in texts], names), names


def load_untagged_words(
    source: str | Path,
    tokens_column: str = "tokens",
    text_column: str = "text",
    spans_column: str | None = None,
    label_names: Sequence[str] | None = None,
    split: str = "train",
    config_name: str | None = None,
) -> Dataset:
    """Loads words or texts without tags, for training on the teacher's predictions alone.

    Args:
        source: as in `load_tagged_words`. Only the first field of each line of a CoNLL file is read.
        tokens_column: column with the words of each text. If there is no such column, `text_column` is read.
        text_column: column with the texts. They are split into words.
        spans_column: as in `load_tagged_words`: if given, texts are split at every mark. The column need not exist.
        label_names: names of the tags in the order of their numbers. Default: the labels have no names.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.

    Returns:
        A dataset as from `load_tagged_words`. All labels are -100, which means no label.

    Raises:
        ValueError: if a file is missing, empty or unreadable, if it has neither column, or if a word or text is empty.

    Example:
        >>> texts = load_untagged_words("news.jsonl")
    """
    if Path(source).suffix in CONLL:
        texts = list(_read_conll(Path(source), tagged=False))
    else:
        rows = read_rows(source, [], split, config_name)
        if tokens_column in rows.column_names and spans_column is None:
            words = enumerate(rows[tokens_column], start=1)
            texts = [_of_words(own, f"{source}, row {row}", tokens_column) for row, own in words]
        elif text_column in rows.column_names:
            check_texts(rows, text_column, source)
            rule = words_read({"spans_column": spans_column})
            texts = [TaggedText(text, split_words(text, rule), None, "") for text in rows[text_column]]
        else:
            raise ValueError(
                f"{source} has neither a column {tokens_column!r} with words nor a column {text_column!r} with texts, "
                f"only {', '.join(map(repr, rows.column_names))}."
            )
    return _dataset(texts, [[IGNORE_INDEX] * len(text.words) for text in texts], label_names)


def _read(
    source: str | Path,
    tokens_column: str,
    tags_column: str,
    text_column: str,
    spans_column: str | None,
    split: str,
    config_name: str | None,
) -> tuple[list[TaggedText], list[str] | None]:
    """Reads any of the three kinds of data, and the names of the tags if they are a `ClassLabel`."""
    if Path(source).suffix in CONLL:
        return list(_read_conll(Path(source), tagged=True)), None
    if Path(source).suffix == ".csv":
        raise ValueError(f"{source} is a .csv file, which has no lists: save words and tags as .jsonl or .parquet.")
    columns = [tokens_column, tags_column] if spans_column is None else [text_column, spans_column]
    rows = read_rows(source, [], split, config_name)
    if missing := [column for column in columns if column not in rows.column_names]:
        raise ValueError(
            f"{source} has no column {' and no column '.join(map(repr, missing))}, only "
            f"{', '.join(map(repr, rows.column_names))}. Words and tags are read from tokens_column and tags_column; "
            f"texts with spans from text_column and spans_column."
        )
    pairs = zip(rows[columns[0]], rows[columns[1]], strict=True)
    places = [f"{source}, row {row}" for row in range(1, len(rows) + 1)]
    if spans_column is not None:
        check_texts(rows, text_column, source)
        return [_of_spans(text, spans, place) for (text, spans), place in zip(pairs, places, strict=True)], None
    feature = getattr(rows.features[tags_column], "feature", None)
    names = list(feature.names) if isinstance(feature, ClassLabel) else None
    return [_tagged(*own, place, tokens_column) for own, place in zip(pairs, places, strict=True)], names


def _read_conll(file: Path, tagged: bool) -> Iterator[TaggedText]:
    words: list[str] = []
    tags: list[Any] = []
    found, first = False, 1
    lines = read_text(file).removeprefix("\ufeff").splitlines()
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip() and not line.startswith(DOCUMENT):
            fields = line.strip().split("\t") if "\t" in line.strip() else line.split()
            if tagged and len(fields) < 2:
                raise ValueError(
                    f"{file}, line {number}: {short(line.strip())} has no tag: write the word first and its tag last, "
                    f"separated by a space or a tab."
                )
            if not words:
                first = number
            words.append(fields[0])
            tags.append(fields[-1].strip())
        elif words:
            found = True
            where = f"{file}, sentence at line {first}"
            yield _tagged(words, tags, where, "words") if tagged else _of_words(words, where, "words")
            words, tags = [], []
    if not found:
        raise ValueError(f"{file} has no sentences: write one word per line, and a blank line after each sentence.")


def _of_words(words: Any, where: str, column: str) -> TaggedText:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{where}: {short(words)} in the column {column!r} must be a list of strings.")
    words = [word.strip() for word in words]
    if not words or "" in words:
        what = f"word {words.index('') + 1} is empty" if words else "there are no words"
        raise ValueError(f"{where}: {what}: remove empty words with their tags, and rows without words.")
    spans, position = [], 0
    for word in words:
        spans.append((position, position + len(word)))
        position += len(word) + 1
    return TaggedText(" ".join(words), spans, None, where)


def _tagged(words: Any, tags: Any, where: str, column: str) -> TaggedText:
    text = _of_words(words, where, column)
    number = len(tags) if isinstance(tags, list) else 0
    if number != len(words):
        raise ValueError(f"{where} has {len(words)} words, but {number} tags: give one tag per word.")
    for word, tag in zip(words, tags, strict=True):
        if isinstance(tag, bool) or not isinstance(tag, int | str) or tag == "":
            raise ValueError(f"{where}: {short(tag)}, the tag of {short(word)}, must be a name or a class number.")
    return replace(text, tags=tags)


def _of_spans(text: str, spans: Any, where: str) -> TaggedText:
    marked = sorted((_span(own, text, where) for own in _list_of_spans(spans, where)), key=lambda own: own[:2])
    for (start, end, label), (other_start, other_end, other_label) in pairwise(marked):
        if other_start < end:
            raise ValueError(
                f"{where}: the spans {start}-{end} ({label}) and {other_start}-{other_end} ({other_label}) overlap: "
                f"keep one of them."
            )
    words = split_words(text, "marks", boundaries=[edge for start, end, _ in marked for edge in (start, end)])
    tags: list[Tag] = [OUTSIDE] * len(words)
    places = iter(enumerate(words))
    number, word = next(places, (0, (0, 0)))
    for start, end, label in marked:
        while word[0] < start:
            number, word = next(places, (len(words), (len(text), len(text))))
        if word[0] >= end:
            raise ValueError(f"{where}: the span {start}-{end} ({label}) has no words, only {text[start:end]!r}.")
        tags[number] = f"B-{label}"
        for inside in range(number + 1, len(words)):
            if words[inside][0] >= end:
                break
            tags[inside] = f"I-{label}"
    return TaggedText(text, words, tags, where)


def _list_of_spans(spans: Any, where: str) -> list[Any]:
    if isinstance(spans, dict):  # a list in the file, turned around by older versions of `datasets`
        spans = [dict(zip(spans, own, strict=True)) for own in zip(*spans.values(), strict=True)]
    if not isinstance(spans, list):
        raise ValueError(f"{where}: {short(spans)} must be a list of spans; it is empty if there are none.")
    return spans


def _span(span: Any, text: str, where: str) -> tuple[int, int, str]:
    if not isinstance(span, dict) or not {"start", "end", "label"} <= span.keys():
        raise ValueError(f'{where}: {short(span)} must be a span, {{"start": 0, "end": 5, "label": "PER"}}.')
    start, end, label = span["start"], span["end"], span["label"]
    for value in (start, end):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{where}: start and end of {short(span)} must be integers, in characters.")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{where}: the label of {short(span)} must be a name.")
    if not 0 <= start < end <= len(text):
        raise ValueError(
            f"{where}: the span {start}-{end} ({label}) must be within the text, which has {len(text)} characters, and "
            f"its end must be after its start."
        )
    return start, end, label.strip()


def _name_tags(found: Mapping[Tag, str], source: str | Path) -> list[str]:
    numbers = [tag for tag in found if isinstance(tag, int)]
    if numbers and len(numbers) == len(found):
        if min(numbers) < 0:
            raise ValueError(f"{found[min(numbers)]}: the tag {min(numbers)} is negative; only -100 is, if unknown.")
        return [f"LABEL_{number}" for number in range(max(numbers) + 1)]
    if numbers:
        raise ValueError(f"{source} has the tags {listed(found)}: use names or class numbers, not both.")
    names = map(str, found)
    if is_prefixed([*map(str, found)]):
        return [OUTSIDE, *sorted({*names} - {OUTSIDE}, key=lambda name: (name[2:], name))]
    return sorted(names, key=lambda name: (name != OUTSIDE, name))


def _number(tag: Tag, own_names: list[str] | None, names: list[str], where: str) -> int:
    """Looks a tag up by its name, or by its number if the model has no names."""
    name: Tag = tag
    if isinstance(tag, int):
        meant = own_names or names
        if 0 <= tag < len(meant):
            name = meant[tag]
            if name not in names and names == [f"LABEL_{number}" for number in range(len(meant))]:
                return tag
    if isinstance(name, str) and name in names:
        return names.index(name)
    raise ValueError(
        f"{where}: the tag {name!r} is unknown. The tags of the training data or of the model are {', '.join(names)}."
    )


def _check_scheme(names: Sequence[str], found: Mapping[str, str], source: str | Path) -> None:
    """Refuses tags such as `X-PER`, or `PER`, next to `B-PER` and `I-PER`."""
    if not is_prefixed(names):
        return
    for name, where in found.items():
        if name != OUTSIDE and (name[:2] not in ("B-", "I-") or len(name) < 3):
            advice = "."
            if name[:2] in ("S-", "U-", "E-", "L-", "M-"):
                advice = ": write BIO tags, with B- for S- and U-, and I- for E-, L- and M-."
            raise ValueError(
                f"{where}: the tag {name!r} is neither O nor begins with B- or I-, as the other tags do{advice}"
            )


def _dataset(texts: Sequence[TaggedText], labels: list[list[int]], names: Sequence[str] | None) -> Dataset:
    columns = {
        "text": [text.text for text in texts],
        "starts": [[start for start, _ in text.words] for text in texts],
        "ends": [[end for _, end in text.words] for text in texts],
        "labels": labels,
    }
    rows = Dataset.from_dict(columns, features=FEATURES)
    if names is None:
        return rows
    return rows.cast(Features({**FEATURES, "labels": List(ClassLabel(names=list(names)))}))
