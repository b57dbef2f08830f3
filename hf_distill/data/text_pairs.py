"""Loads source texts with their targets, such as articles and summaries, and turns them into rows of tokens."""

from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_distill.data.reading import check_texts, read_rows
from hf_distill.data.texts import load_unlabelled_texts
from hf_distill.data.truncation import encode_texts
from hf_distill.lengths import Truncation


def load_text_pairs(
    source: str | Path,
    source_column: str = "source",
    target_column: str | None = "target",
    split: str = "train",
    config_name: str | None = None,
) -> Dataset:
    """Loads source texts and the target texts that a model should generate from them.

    Args:
        source: a .csv (with a header), .json, .jsonl or .parquet file; a folder that `datasets.load_dataset` reads; or
            a Hub name. Without `target_column`, also a .txt file with one text per line, or a folder of .txt files with
            one text per file.
        source_column: column with the source texts. A dot names a field inside a column: `translation.en` reads
            `{"translation": {"en": ..., "de": ...}}`, as in the WMT datasets.
        target_column: column with the target texts, named in the same way. None loads source texts alone.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.

    Returns:
        A dataset with the column `source` and, with `target_column`, the column `target`.

    Raises:
        ValueError: if a file is missing, empty or unreadable; if a column is missing; if both columns are the same; or
            if a source or target is empty or not a string. Rows are counted from 1, without the header.

    Example:
        >>> train = load_text_pairs("articles.jsonl", source_column="article", target_column="highlights")
        >>> test = load_text_pairs("wmt/wmt16", "translation.de", "translation.en", split="test", config_name="de-en")
    """
    if target_column is None:
        texts = load_unlabelled_texts(source, source_column, split, config_name)
        return texts.select_columns("text").rename_column("text", "source")
    if source_column == target_column:
        raise ValueError(f"source_column and target_column are both {source_column!r}: they must differ.")
    columns = {source_column: "source", target_column: "target"}
    rows = read_rows(source, list(columns), split, config_name).select_columns(list(columns))
    for column in columns:
        check_texts(rows, column, source)
    return rows.rename_columns(columns)


def encode_text_pairs(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_target_length: int,
    source_prefix: str = "",
    truncation: Truncation = "head",
) -> Dataset:
    """Tokenizes source and target texts, without padding.

    A target that is too long is truncated at its end, and its last token is still the end of the text.

    Args:
        dataset: dataset with the column `source`, and `target` if there are targets. Other columns are kept.
        tokenizer: the tokenizer. If it has language tokens, set `tokenizer.src_lang` and `tokenizer.tgt_lang` first.
        max_length: tokens per source, including special tokens.
        max_target_length: tokens per target, including special tokens.
        source_prefix: text in front of each source, such as `"summarize: "` for T5.
        truncation: which part of a long source is kept, as in `encode_texts`.

    Returns:
        The dataset with `input_ids`, `attention_mask` and, if there are targets, `labels`, in place of `source` and
        `target`. Batch it with `DataCollatorForSeq2Seq(tokenizer, model=student)`.

    Raises:
        ValueError: if a length leaves no room for a token of the text, or if `truncation` would remove the prefix.

    Example:
        >>> rows = encode_text_pairs(load_text_pairs("articles.jsonl"), tokenizer, 1024, 128)
    """
    if source_prefix and truncation != "head":
        raise ValueError(
            f"truncation={truncation!r} would cut the source_prefix {source_prefix!r} from long texts: use "
            f"truncation='head'."
        )
    has_targets = "target" in dataset.column_names
    if has_targets:
        shortest = len(tokenizer(text_target="a", add_special_tokens=True)["input_ids"])
        if max_target_length < shortest:
            raise ValueError(
                f"max_target_length={max_target_length} leaves no room for text: use at least {shortest} tokens."
            )

    def encode_targets(batch: dict[str, list[str]]) -> dict[str, list]:
        options = {"max_length": max_target_length, "truncation": True}
        texts = [source_prefix + text for text in batch["source"]]
        labels = {"labels": tokenizer(text_target=batch["target"], **options)["input_ids"]} if has_targets else {}
        return {"text": texts, **labels}

    columns = ["source", "target"] if has_targets else ["source"]
    targets = dataset.map(encode_targets, batched=True, remove_columns=columns, desc="Tokenising targets")
    return encode_texts(targets, tokenizer, max_length, truncation)
