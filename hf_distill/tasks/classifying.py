"""`classify_texts`: the logits of a PyTorch classifier."""

from collections.abc import Sequence

import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.data import encode_texts
from hf_distill.lengths import Truncation, length_of_rows, truncation_of
from hf_distill.progress import track
from hf_distill.tasks.classes import columns_by_name, label_names_of
from hf_distill.tasks.processors import with_padding


@torch.inference_mode()
def classify_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int | None = None,
    truncation: Truncation | None = None,
    batch_size: int = 32,
    label_names: Sequence[str] | None = None,
) -> torch.Tensor:
    """Computes the logits of texts, in batches of similar length to save padding.

    Args:
        model: a classifier, on any device.
        tokenizer: the model's tokenizer.
        texts: the texts to classify.
        max_length: tokens per text. Default: the tokenizer's `model_max_length` (the training length, for models of
            `hf-distill train`), at most what the model accepts.
        truncation: which part of a long text is kept, as in `encode_texts`. Default: the part a model of
            `hf-distill train` was trained on, else `"head"`.
        batch_size: texts per forward pass.
        label_names: class names in the order wanted for the columns. Default: the model's own order.

    Returns:
        Logits `[texts, labels]`, in fp32 on the CPU.

    Raises:
        ValueError: if the model has other classes than `label_names`, or fewer positions than `max_length`.

    Example:
        >>> classify_texts(model, tokenizer, ["A warm film."]).softmax(-1)
    """
    columns = _columns(model, label_names)
    length = length_of_rows(max_length, tokenizer, model)
    rows = encode_texts(
        Dataset.from_dict({"text": list(texts)}), tokenizer, length, truncation or truncation_of(model.config)
    )
    order = sorted(range(len(rows)), key=[len(ids) for ids in rows["input_ids"]].__getitem__)
    collate = DataCollatorWithPadding(with_padding(tokenizer, model))
    was_training = model.training
    model.eval()
    logits = torch.empty(len(rows), model.config.num_labels)
    for start in track(range(0, len(rows), batch_size), "Classifying", "batches", only_if_long=True):
        indices = order[start : start + batch_size]
        batch = collate([rows[index] for index in indices])
        logits[indices] = model(**batch.to(model.device)).logits.float().cpu()
    model.train(was_training)
    return logits[:, columns]


def _columns(model: PreTrainedModel, label_names: Sequence[str] | None) -> list[int]:
    own = label_names_of(model.config)
    return columns_by_name(own, own if label_names is None else label_names, model.name_or_path)
