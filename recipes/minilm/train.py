"""Trains a small encoder on plain text to have the self-attention relations of a large one, as in MiniLMv2.

accelerate launch recipes/minilm/train.py --config recipes/minilm/config.yaml [more.yaml] [--key value]
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hf_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    SeparateDocuments,
    TrainingRun,
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
    """Teacher, student and data of the recipe. `DistillationTrainingArguments` holds everything else."""

    teacher: str = field(metadata={"help": "Encoder: a Hub name or a folder."})
    corpus: str = field(metadata={"help": "Text: files, a folder, or a Hub name. See docs/pretraining.md."})
    student: dict = field(
        default_factory=dict,
        metadata={
            "help": "What differs between the student's config and the teacher's, such as hidden_size. Only in YAML "
            "files."
        },
    )
    student_weights: Literal["random", "teacher"] = field(
        default="random",
        metadata={
            "help": "The student's initial weights. 'random': new weights, for a student of any size. 'teacher': the "
            "teacher's own layers, for a student that differs in num_hidden_layers alone."
        },
    )
    corpus_options: dict = field(
        default_factory=dict,
        metadata={"help": "Options for datasets.load_dataset, such as name or sample_by. Only in YAML files."},
    )
    streaming: bool = field(default=False, metadata={"help": "Read the corpus during training."})
    validation_documents: int = field(
        default=0, metadata={"help": "Hold out this many documents, from the start of the corpus, for evaluation."}
    )
    block_size: int = field(default=512, metadata={"help": "Tokens per row."})
    packing: Literal["documents", "none"] = field(
        default="documents",
        metadata={
            "help": "How documents fill rows. 'documents': packed, without attention between documents. 'none': one "
            "truncated document per row."
        },
    )
    resume: bool = field(
        default=False,
        metadata={"help": "Continue from the last checkpoint with more steps, or another evaluation."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Start again from scratch and replace the earlier training in output_dir."}
    )


@dataclass
class PaddingCollator:
    """Pads rows of plain text. Nothing is masked, and there are no labels.

    Args:
        tokenizer: the tokenizer that made the rows.
        attention: keeps the documents of a packed row apart; None if each row is one document.

    Returns:
        `input_ids` `[batch, length]` and an `attention_mask`.
    """

    tokenizer: PreTrainedTokenizerBase
    attention: SeparateDocuments | None = None

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
        batch = dict(DataCollatorWithPadding(self.tokenizer)(list(rows)))
        return batch if self.attention is None else self.attention(batch)


def new_student(recipe: RecipeArguments, teacher: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Creates the student.

    Raises:
        ValueError: if `recipe.student` has a name that the teacher's config does not have, or if a student with the
            teacher's weights differs in more than its number of layers.
    """
    if unknown := [name for name in recipe.student if not hasattr(teacher.config, name)]:
        raise ValueError(f"student has {', '.join(unknown)}, which is not in a {type(teacher.config).__name__}.")
    if recipe.student_weights == "teacher":
        if other := sorted(recipe.student.keys() - {"num_hidden_layers"}):
            raise ValueError(
                f"student_weights='teacher' copies whole layers, so the student cannot have another "
                f"{', '.join(other)}: use student_weights='random'."
            )
        return make_student(teacher, recipe.student.get("num_hidden_layers"))
    set_seed(seed)
    config = AutoConfig.for_model(**{**teacher.config.to_dict(), **recipe.student})
    config.name_or_path = ""  # it is not the teacher
    return AutoModel.from_config(config)


def make_rows(recipe: RecipeArguments, documents: Rows, tokenizer: PreTrainedTokenizerBase) -> Rows:
    make = truncate_documents if recipe.packing == "none" else pack_documents
    return make(documents, tokenizer, recipe.block_size)


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


def make_trainer(
    recipe: RecipeArguments,
    training: DistillationTrainingArguments,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> DistillationTrainer:
    """Reads and tokenizes the corpus, on the main process first so that the others find it in the cache."""
    if recipe.streaming:
        training.accelerator_config.dispatch_batches = False  # each process reads its own files, or its own rows
    with training.main_process_first():
        documents, held_out = load_documents(recipe, training.seed)
        rows = make_rows(recipe, documents, tokenizer)
        eval_rows = None if held_out is None else make_rows(recipe, held_out, tokenizer)

    per_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    if not recipe.streaming and len(rows) < per_step:
        raise ValueError(
            f"The corpus gives {len(rows):,} rows, but one step needs {per_step:,}: lower "
            f"gradient_accumulation_steps={training.gradient_accumulation_steps}."
        )
    if training.process_index == 0:
        amount = "a stream of rows" if recipe.streaming else f"{len(rows):,} rows"
        processes = f"{training.world_size} process(es)"
        print(f"{amount} of at most {recipe.block_size} tokens, {per_step:,} per step on {processes}")
    return DistillationTrainer(
        student,
        training,
        PaddingCollator(tokenizer, SeparateDocuments(student, teacher) if recipe.packing == "documents" else None),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        teacher_model=teacher,
    )


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
    teacher = AutoModel.from_pretrained(recipe.teacher, dtype=torch.float32, use_safetensors=True)
    student = new_student(recipe, teacher, training.seed)
    trainer = make_trainer(recipe, training, student, teacher, tokenizer)

    run.train(trainer)
    trainer.save_model(_internal_call=True)  # does not push: pushing comes last, after everything is saved
    if recipe.validation_documents:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    run.finish()
    if training.push_to_hub:
        trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    main()
