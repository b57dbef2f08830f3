"""`python -m recipes.benchmarks.split_invariance`: one step of 16 rows, as one batch and as 4 accumulated batches of 4.

Both are the same training step, so loss and gradient should be the same. The models are tiny and have random weights.
Rows have different lengths; for heads per token they also have different numbers of labels.
"""

import gc
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from recipes.benchmarks._common import PACKAGES, QUIET, make_parser, print_versions, table, train_quietly, write_json

SPLITS = {"16x1": (16, 1), "4x4": (4, 4)}
"""Batch size and number of accumulated batches."""

TRAINERS = {
    "Trainer": (Trainer, TrainingArguments),
    "DistillationTrainer": (DistillationTrainer, DistillationTrainingArguments),
}
VOCAB_SIZE, NUM_LABELS = 61, 3

HEADS = {
    # head: model class, and config entries in addition to the sizes
    "sequence classification": ("BertForSequenceClassification", {"num_labels": NUM_LABELS}),
    "multi-label classification": (
        "BertForSequenceClassification",
        {"num_labels": NUM_LABELS, "problem_type": "multi_label_classification"},
    ),
    "regression": ("BertForSequenceClassification", {"num_labels": 1}),
    "token classification": ("BertForTokenClassification", {"num_labels": NUM_LABELS}),
    "question answering": ("BertForQuestionAnswering", {}),
    "multiple choice": ("BertForMultipleChoice", {}),
    "masked LM, BERT": ("BertForMaskedLM", {}),
    "masked LM, RoBERTa": ("RobertaForMaskedLM", {}),
    "causal LM": ("GPT2LMHeadModel", {}),
    "sequence to sequence": ("BartForConditionalGeneration", {}),
}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
BART = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
BART |= {"dropout": 0.0, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
SIZES = {"bert": BERT, "roberta": BERT, "gpt2": GPT2, "bart": BART}
WEIGHTS = {"initializer_range": 0.2, "init_std": 0.2}  # large enough for outputs far from uniform
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


class KeepGradient(TrainerCallback):
    """Keeps the gradient of the optimizer step as one vector over all parameters."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def make_model(head: str, seed: int) -> PreTrainedModel:
    """Makes a tiny model without dropout. Its random weights are the same in every run."""
    torch.manual_seed(seed)
    class_name, options = HEADS[head]
    model_class = getattr(transformers, class_name)
    config_class = model_class.config_class
    sizes = SIZES[config_class.model_type]
    return model_class(config_class(vocab_size=VOCAB_SIZE, **sizes, **WEIGHTS, **TOKENS, **options))


def make_rows(head: str, num_rows: int = 16) -> list[dict[str, object]]:
    """Makes rows of 4 to 19 tokens. For heads per token, one to all tokens of a row have a label."""
    generator = torch.Generator().manual_seed(0)

    def integers(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    rows = []
    for index in range(num_rows):
        tokens = integers(3, VOCAB_SIZE, integers(4, 20, 1)[0])
        row = {"input_ids": tokens, "attention_mask": [1] * len(tokens)}
        if head == "sequence classification":
            row["labels"] = integers(0, NUM_LABELS, 1)[0]
        elif head == "multi-label classification":
            row["labels"] = [float(label) for label in integers(0, 2, NUM_LABELS)]
        elif head == "regression":
            row["labels"] = torch.randn((), generator=generator).item()
        elif head == "question answering":
            row["start_positions"], row["end_positions"] = integers(0, len(tokens), 2)
        elif head == "multiple choice":
            row = {name: [values, values[::-1], values[1:]] for name, values in row.items()} | {"labels": index % 3}
        elif head == "sequence to sequence":
            row["labels"] = integers(3, VOCAB_SIZE, 1 + index)
        else:
            classes = integers(0, NUM_LABELS, len(tokens)) if head == "token classification" else tokens
            num_without = len(tokens) * (num_rows - 1 - index) // num_rows
            row["labels"] = [-100] * num_without + classes[num_without:]
        rows.append(row)
    return rows


def collate(rows: list[dict[str, object]]) -> dict[str, torch.Tensor]:
    """Pads each column to its longest row: labels with -100, everything else with 0."""

    def pad(name: str, values: list[list]) -> torch.Tensor:
        longest, fill = max(map(len, values)), -100 if name == "labels" else 0
        return torch.tensor([value + [fill] * (longest - len(value)) for value in values])

    batch = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if not isinstance(first, list):
            batch[name] = torch.tensor(values)
        elif isinstance(first[0], list):
            batch[name] = pad(name, [choice for row in values for choice in row]).unflatten(0, (len(rows), len(first)))
        else:
            batch[name] = pad(name, values)
    return batch


def one_step(head: str, trainer_name: str, batch_size: int, num_batches: int) -> tuple[float, torch.Tensor]:
    """The logged loss of one optimizer step, and its gradient."""
    trainer_class, arguments_class = TRAINERS[trainer_name]
    options = {"teacher_model": make_model(head, seed=0)} if trainer_class is DistillationTrainer else {}
    keeper = KeepGradient()
    shared = {"max_steps": 1, "max_grad_norm": 0.0, "train_sampling_strategy": "sequential", "use_cpu": True}
    shared |= {"logging_steps": 1, **QUIET}
    with tempfile.TemporaryDirectory() as folder:
        args = arguments_class(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=num_batches,
            **shared,
        )
        model = make_model(head, seed=1)
        trainer = trainer_class(model, args, collate, make_rows(head), callbacks=[keeper], **options)
        train_quietly(trainer)
    return trainer.state.log_history[0]["loss"], keeper.gradient


def compare_splits(head: str, trainer_name: str) -> dict[str, float]:
    """The loss of each split, and the relative difference between the gradients of the two splits."""
    losses, gradients = zip(*(one_step(head, trainer_name, *split) for split in SPLITS.values()), strict=True)
    deviation = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    return dict(zip(SPLITS, losses, strict=True)) | {"gradient": deviation.item()}


def run(output: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Measures every head, prints the table, and writes the figures to `output`."""
    transformers.logging.set_verbosity_error()
    measured = {head: {trainer: compare_splits(head, trainer) for trainer in TRAINERS} for head in HEADS}
    header = [f"{trainer}, {column}" for trainer in TRAINERS for column in ("loss 16x1", "loss 4x4", "gradient")]
    rows = [
        [f"{head} ({HEADS[head][0]})", *(text for own in trainers.values() for text in _cells(own))]
        for head, trainers in measured.items()
    ]
    print(table(["head", *header], rows))
    print("\ngradient: ||g_4x4 - g_16x1|| / ||g_16x1||")
    write_json(output, {"versions": print_versions(PACKAGES), "heads": measured})
    return measured


def _cells(figures: dict[str, float]) -> list[str]:
    return [f"{value:.2g}" if name == "gradient" else f"{value:.4f}" for name, value in figures.items()]


def main() -> None:
    output = make_parser("split_invariance", __doc__).parse_args().output
    gc.freeze()  # Trainer collects garbage after each training, and would mostly scan imported modules
    torch.set_num_threads(1)  # tiny models run slower on more threads
    run(output)


if __name__ == "__main__":
    main()
