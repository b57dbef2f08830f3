"""Cuts a student from a masked language model and distils it from that teacher on plain text.

accelerate launch recipes/distilroberta/train.py --config recipes/distilroberta/config.yaml [more.yaml] [--key value]
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_distill import (
    DataCollatorForMaskedLM,
    DistillationTrainer,
    DistillationTrainingArguments,
    SeparateDocuments,
    TrainingRun,
    count_tokens,
    load_corpus,
    make_student,
    model_identity,
    pack_documents,
    parse_config,
    truncate_documents,
)

SHUFFLED = 10_000
"""Documents of a stream that are read ahead and shuffled."""

Rows = Dataset | IterableDataset


@dataclass
class RecipeArguments:
    """Teacher and data of the recipe. `DistillationTrainingArguments` holds everything else."""

    teacher: str = field(metadata={"help": "Masked language model: a Hub name or a folder."})
    corpus: str = field(metadata={"help": "Text: files, a folder, or a Hub name. See docs/pretraining.md."})
    corpus_options: dict = field(
        default_factory=dict,
        metadata={"help": "Options for datasets.load_dataset, such as sample_by. Only in YAML files."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the corpus during training. Needs max_steps, because a stream has no length."},
    )
    validation_documents: int = field(
        default=0, metadata={"help": "Hold out this many documents, from the start of the corpus, for evaluation."}
    )
    block_size: int = field(default=512, metadata={"help": "Tokens per row."})
    packing: Literal["documents", "full_sentences", "none"] = field(
        default="documents",
        metadata={
            "help": "How documents fill rows. 'documents': packed, without attention between documents. "
            "'full_sentences': packed, with attention between documents, as in RoBERTa. 'none': one truncated document "
            "per row."
        },
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of tokens that are masked and predicted."})
    emphasize_rare_tokens: bool = field(
        default=False,
        metadata={"help": "Mask tokens with a weight of count ** -0.7. Reads the corpus once before training."},
    )
    resume: bool = field(
        default=False,
        metadata={"help": "Continue from the last checkpoint with more epochs or steps, or another evaluation."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Start again from scratch and replace the earlier training in output_dir."}
    )


def load_documents(recipe: RecipeArguments, seed: int) -> tuple[Rows, Dataset | None]:
    """Loads the documents for training and, if any are held out, for evaluation."""
    corpus = load_corpus(recipe.corpus, streaming=recipe.streaming, **recipe.corpus_options)
    num_held_out = recipe.validation_documents
    if not recipe.streaming and len(corpus) <= num_held_out:
        raise ValueError(
            f"The corpus has {len(corpus)} documents: too few to hold out validation_documents={num_held_out}."
        )
    held_out = None
    if num_held_out:
        held_out = Dataset.from_list(list(corpus.take(num_held_out)))
        corpus = corpus.skip(num_held_out)
    if recipe.streaming:
        # An endless stream: Trainer can neither resume in the second pass over a stream, nor finish a step at its end.
        corpus = corpus.repeat(None).shuffle(seed=seed, buffer_size=SHUFFLED)
    return corpus, held_out


def make_rows(recipe: RecipeArguments, documents: Rows, tokenizer: PreTrainedTokenizerBase) -> Rows:
    make = truncate_documents if recipe.packing == "none" else pack_documents
    return make(documents, tokenizer, recipe.block_size)


def count_for_masking(recipe: RecipeArguments, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor | None:
    if not recipe.emphasize_rare_tokens:
        return None
    if recipe.streaming:
        raise ValueError(
            "emphasize_rare_tokens=True reads the whole corpus first: leave out emphasize_rare_tokens or streaming."
        )
    return count_tokens(rows, len(tokenizer))


def make_trainer(
    recipe: RecipeArguments,
    training: DistillationTrainingArguments,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
) -> DistillationTrainer:
    """Reads and tokenizes the corpus, on the main process first so that the others find it in the cache."""
    if recipe.streaming:
        training.accelerator_config.dispatch_batches = False  # each process reads its own files, or its own rows
    with training.main_process_first():
        documents, held_out = load_documents(recipe, training.seed)
        rows = make_rows(recipe, documents, tokenizer)
        eval_rows = None if held_out is None else make_rows(recipe, held_out, tokenizer)
        token_counts = count_for_masking(recipe, rows, tokenizer)

    per_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    if not recipe.streaming and len(rows) < per_step:
        raise ValueError(
            f"The corpus gives {len(rows):,} rows, but one step needs {per_step:,}: lower "
            f"gradient_accumulation_steps={training.gradient_accumulation_steps}."
        )
    if training.process_index == 0:
        amount = "a stream of rows" if recipe.streaming else f"{len(rows):,} rows"
        print(f"{amount} of {recipe.block_size} tokens, {per_step:,} per step on {training.world_size} process(es)")

    models = [student] if teacher is None else [student, teacher]
    collator = DataCollatorForMaskedLM(
        tokenizer,
        mlm_probability=recipe.mlm_probability,
        token_counts=token_counts,
        attention=SeparateDocuments(*models) if recipe.packing == "documents" else None,
    )
    return DistillationTrainer(
        student,
        training,
        collator,
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        teacher_model=teacher,
    )


def evaluate(trainer: DistillationTrainer) -> dict[str, float]:
    """Losses on the held-out documents, and their perplexity, the exponential of the masked language modelling loss."""
    metrics = trainer.evaluate()
    if "eval_loss_task" in metrics:
        metrics["perplexity"] = math.exp(metrics["eval_loss_task"])
    return metrics


def settings_of(recipe: RecipeArguments) -> dict[str, object]:
    """Everything, apart from the training arguments, that affects the student. The corpus counts by its name only."""
    settings = asdict(recipe)
    del settings["resume"], settings["overwrite"]
    return settings | {"teacher": model_identity(recipe.teacher)}


def main(argv: Sequence[str] | None = None) -> DistillationTrainer | None:
    """Trains the student. Returns None if `output_dir` already holds it."""
    recipe, training = parse_config([RecipeArguments, DistillationTrainingArguments], argv, description=__doc__)
    training.check_losses()
    run = TrainingRun.begin(training, settings_of(recipe), resume=recipe.resume, overwrite=recipe.overwrite)
    if run is None:
        return None
    tokenizer = AutoTokenizer.from_pretrained(recipe.teacher)
    teacher = AutoModelForMaskedLM.from_pretrained(recipe.teacher, dtype=torch.float32, use_safetensors=True)
    student = make_student(teacher)
    trainer = make_trainer(recipe, training, student, teacher if training.reads_teacher else None, tokenizer)

    run.train(trainer)
    trainer.save_model(_internal_call=True)  # does not push: pushing comes last, after everything is saved
    if recipe.validation_documents:
        metrics = evaluate(trainer)
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    run.finish()
    if training.push_to_hub:
        trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    main()
