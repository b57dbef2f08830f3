"""What student and teacher write for the same prompts during a training."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from hf_distill.adapters import transformers_model
from hf_distill.optional import optional


def show_completions(trainer: Trainer, prompts: Sequence[str], *, max_new_tokens: int = 64) -> None:
    """Shows what student and teacher write for some prompts: at the start, at each evaluation and at the end.

    Completions are greedy. They are a table on stderr and, if the trainer reports to TensorBoard, a text of each prompt
    there. A teacher whose outputs are stored writes nothing.

    Args:
        trainer: a `DistillationTrainer` or any other `Trainer` of a causal language model, with its tokenizer as
            `processing_class`.
        prompts: texts to continue.
        max_new_tokens: the most tokens of a completion.

    Raises:
        ValueError: if there are no prompts, if the student cannot generate or is sharded, or without a tokenizer.
        ImportError: if rich is not installed.

    Example:
        >>> show_completions(trainer, ["The capital of France is"])
        >>> trainer.train()
    """
    optional("rich", "evaluation")
    student = transformers_model(trainer.model)
    if not prompts:
        raise ValueError("prompts is empty: give at least one text to continue.")
    if student.config.is_encoder_decoder or not student.can_generate():
        raise ValueError(f"A {type(student).__name__} does not continue texts: load it with AutoModelForCausalLM.")
    if not isinstance(trainer.processing_class, PreTrainedTokenizerBase):
        raise ValueError("The trainer has no tokenizer: pass it as processing_class.")
    if trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError("Completions need the whole student in one process: leave show_completions out.")
    trainer.add_callback(Completions(trainer, prompts, max_new_tokens))


class Completions(TrainerCallback):
    """Generates and shows completions.

    Attributes:
        shown: by step, what the student wrote for each prompt.
        of_teacher: what the teacher wrote; None without one that runs.
    """

    def __init__(self, trainer: Trainer, prompts: Sequence[str], max_new_tokens: int):
        self.trainer, self.prompts, self.max_new_tokens = trainer, list(prompts), max_new_tokens
        self.shown: dict[int, list[str]] = {}
        self.of_teacher: list[str] | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        teacher = getattr(getattr(self.trainer, "teacher", None), "model", None)
        if state.is_world_process_zero and teacher is not None:
            self.of_teacher = self._completions(teacher)
        self._show(state)

    def on_evaluate(self, args, state, control, **kwargs):
        self._show(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._show(state)

    def _show(self, state) -> None:
        if not state.is_world_process_zero or state.global_step in self.shown:
            return
        self.shown[state.global_step] = own = self._completions(transformers_model(self.trainer.model))
        teachers = self.of_teacher or [""] * len(own)
        rows = list(zip(self.prompts, own, teachers, strict=True))
        console, table = optional("rich.console", "evaluation"), optional("rich.table", "evaluation")
        shown = table.Table("prompt", f"student, step {state.global_step:,}", "teacher", show_lines=True)
        for row in rows:
            shown.add_row(*map(optional("rich.markup", "evaluation").escape, row))
        console.Console(stderr=True).print(shown)
        for number, (prompt, student, teacher) in enumerate(rows):
            text = f"**{prompt}**\n\nstudent: {student}\n\nteacher: {teacher}"
            for writer in self._writers():
                writer.add_text(f"completions/{number}", text, state.global_step)

    def _writers(self) -> list[Any]:
        """The writers of TensorBoard."""
        callbacks = self.trainer.callback_handler.callbacks
        writers = [own.tb_writer for own in callbacks if isinstance(own, TensorBoardCallback)]
        return [writer for writer in writers if writer is not None]

    @torch.no_grad()
    def _completions(self, model: PreTrainedModel) -> list[str]:
        tokenizer, was_training = self.trainer.processing_class, model.training
        texts = []
        model.eval()
        try:
            for prompt in self.prompts:
                inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
                tokens = model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
                new = tokens[0, inputs["input_ids"].shape[1] :]
                texts.append(tokenizer.decode(new, skip_special_tokens=True))
        finally:
            model.train(was_training)
        return texts
