"""Cuts a student out of a masked language model and trains it beside that teacher on plain text.

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
"""Documents of a stream that are read ahead, to be drawn from at random."""

Rows = Dataset | IterableDataset


@dataclass
class RecipeArguments:
    """What is trained on what; how is for `DistillationTrainingArguments`."""

    teacher: str = field(metadata={"help": "Masked language model: a name on the Hub or a folder."})
    corpus: str = field(metadata={"help": "Text: files, a folder, or a name on the Hub. See docs/pretraining.md."})
    corpus_options: dict = field(
        default_factory=dict, metadata={"help": "For datasets.load_dataset, such as sample_by. In YAML only."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the corpus while training. Needs max_steps, as a stream has no length."}
    )
    validation_documents: int = field(
        default=0, metadata={"help": "How many documents, from the beginning of the corpus, are evaluated on instead."}
    )
    block_size: int = field(default=512, metadata={"help": "Tokens per row."})
    packing: Literal["documents", "full_sentences", "none"] = field(
        default="documents",
        metadata={
            "help": "Rows filled with documents that do not see each other ('documents'), or that do, as in RoBERTa "
            "('full_sentences'), or a row for each, truncated ('none')."
        },
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "The share of tokens that are predicted."})
    emphasize_rare_tokens: bool = field(
        default=False, metadata={"help": "Mask tokens in proportion to count ** -0.7. Reads the corpus once before."}
    )
    resume: bool = field(
        default=False,
        metadata={"help": "Go on from the last checkpoint for more epochs or steps, or with other evaluation."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Train anew, in place of what output_dir holds of another training."}
    )


def load_documents(recipe: RecipeArguments, seed: int) -> tuple[Rows, Dataset | None]:
    """Those to train on, and those to evaluate on."""
    corpus = load_corpus(recipe.corpus, streaming=recipe.streaming, **recipe.corpus_options)
    num_held_out = recipe.validation_documents
    if not recipe.streaming and len(corpus) <= num_held_out:
        raise ValueError(f"There are {len(corpus)} documents: too few to hold out validation_documents={num_held_out}.")
    held_out = None
    if num_held_out:
        held_out = Dataset.from_list(list(corpus.take(num_held_out)))
        corpus = corpus.skip(num_held_out)
    if recipe.streaming:
        # One stream without an end: Trainer does not resume in the second pass over one, nor finish a step at its end.
        corpus = corpus.repeat(None).shuffle(seed=seed, buffer_size=SHUFFLED)
    return corpus, held_out


def make_rows(recipe: RecipeArguments, documents: Rows, tokenizer: PreTrainedTokenizerBase) -> Rows:
    make = truncate_documents if recipe.packing == "none" else pack_documents
    return make(documents, tokenizer, recipe.block_size)


def count_for_masking(recipe: RecipeArguments, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor | None:
    if not recipe.emphasize_rare_tokens:
        return None
    if recipe.streaming:
        raise ValueError("emphasize_rare_tokens=True reads the whole corpus first: leave it out, or streaming=True.")
    return count_tokens(rows, len(tokenizer))


def make_trainer(
    recipe: RecipeArguments,
    training: DistillationTrainingArguments,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
) -> DistillationTrainer:
    """Reads and tokenises the corpus, on the main process first: the others find it in the cache."""
    if recipe.streaming:
        training.accelerator_config.dispatch_batches = False  # each process reads files of its own, or takes its turn
    with training.main_process_first():
        documents, held_out = load_documents(recipe, training.seed)
        rows = make_rows(recipe, documents, tokenizer)
        eval_rows = None if held_out is None else make_rows(recipe, held_out, tokenizer)
        token_counts = count_for_masking(recipe, rows, tokenizer)

    per_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    if not recipe.streaming and len(rows) < per_step:
        raise ValueError(
            f"The corpus makes {len(rows):,} rows, fewer than the {per_step:,} of one step: lower "
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
    """The losses on what is held out, and its perplexity: e to the power of the masked language modelling loss."""
    metrics = trainer.evaluate()
    if "eval_loss_task" in metrics:
        metrics["perplexity"] = math.exp(metrics["eval_loss_task"])
    return metrics


def settings_of(recipe: RecipeArguments) -> dict[str, object]:
    """What the student depends on, beside the training arguments. The corpus is known by its name alone."""
    settings = asdict(recipe)
    del settings["resume"], settings["overwrite"]
    return settings | {"teacher": model_identity(recipe.teacher)}


def main(argv: Sequence[str] | None = None) -> DistillationTrainer | None:
    """Trains, unless `output_dir` has that student already; then there is no trainer."""
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
    trainer.save_model(_internal_call=True)  # which does not push: all else should be saved by then
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
