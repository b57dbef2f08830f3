"""A trainer that writes model cards and pushes only the files on a list to the Hub."""

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from peft import PeftModel
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from hf_distill.adapters import merged
from hf_distill.hub.cards import may_replace, write_card
from hf_distill.hub.push import (
    check_nothing_private,
    clear_errors,
    commit_files,
    files_to_push,
    how_to_push_later,
    hub_api,
)
from hf_distill.training.publishing.card import CardOptions, training_card
from hf_distill.training.publishing.origins import license_of, teachers_of

logger = logging.get_logger(__name__)


class StepsOfTraining(TrainerCallback):
    """Counts the steps of the last training since its start or checkpoint. None before any training."""

    made: int | None = None

    def on_train_begin(self, *args, **kwargs) -> None:
        self.made = 0

    def on_step_end(self, *args, **kwargs) -> None:
        self.made = (self.made or 0) + 1


class PublishingTrainer(Trainer):
    """A `Trainer` that writes a model card for each saved student, and pushes no optimizer states or arguments."""

    push_in_progress: PushInProgress | None

    _card_options = CardOptions()
    _unfinished_run_dir: str | None = None
    """The folder in which a checkpoint is being written."""

    goes_on_unchanged = False
    """Whether the checkpoint to resume from was written with the same arguments. If so, a card is written even if no
    step is left to train."""

    pipeline_tag: str | None = None
    """The student's task on the Hub, for the card. Default: that of its head."""

    earlier_stages: Mapping[str, str] = {}
    """What the student was trained on in earlier stages, by stage."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._steps = StepsOfTraining()
        self.add_callback(self._steps)

    @property
    def steps_made(self) -> int:
        """The steps of the last training, without those before the checkpoint that it resumed from."""
        return self._steps.made or 0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`, and writes a model card, `README.md`.

        A card that a person wrote or edited is not replaced. No card is written after a training without a step,
        because the weights may have been trained with other arguments.
        """
        output_dir = output_dir or self.args.output_dir
        if self._unfinished_run_dir is not None:
            super().save_model(output_dir, _internal_call=True)
            return
        with self._card_beside(output_dir, is_adapter=isinstance(self.model, PeftModel)):
            super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Writes the model card into `output_dir`: teacher, losses, data, results, and how to load the student.

        `docs/publishing.md` describes the card. A card that a person wrote or edited is not replaced.

        Args:
            args: the arguments of `Trainer.create_model_card` in its order, which is the order of `CardOptions`.
            options: the same by name. They override what the trainer knows, in this card and in later ones.
        """
        self._card_options = CardOptions(*args, **options)
        with self._card_beside(self.args.output_dir, is_adapter=isinstance(self.model, PeftModel)):
            pass

    @contextmanager
    def _card_beside(self, output_dir: str, is_adapter: bool) -> Iterator[None]:
        """Writes the card after the body. Checks before whether it may, because PEFT replaces the card in the body."""
        readme = Path(output_dir, "README.md")
        is_ours = may_replace(readme)
        yield
        if not self.is_world_process_zero():
            return
        if self._steps.made == 0 and not self.goes_on_unchanged:
            logger.warning_once(f"No training step was made, so no model card is written to {output_dir}.")
            return
        if not is_ours:
            logger.warning_once(
                f"{readme} was not written by hf_distill or was edited since, so it is kept and may not describe this "
                f"model: move it away to get a new card."
            )
            return
        given = self._card_options
        name = given.model_name or self.hub_model_id or self.args.hub_model_id or Path(output_dir).absolute().name
        license = {"license": given.license} if given.license else self._teachers_license
        write_card(training_card(self, name.split("/")[-1], license, is_adapter, given), readme)

    @cached_property
    def _teachers_license(self) -> dict[str, str]:
        """The licence of the teacher, or of all teachers, looked up once."""
        return license_of(teachers_of(self))

    def save_merged_model(self, output_dir: str) -> None:
        """Merges PEFT adapters into a copy of the student and saves it as a plain model. Training can continue.

        Args:
            output_dir: the folder to write to. `AutoModelFor...from_pretrained` loads it without PEFT.

        Raises:
            TypeError: if the student has no adapters.
            ValueError: if the adapters cannot be merged.
        """
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(student, PeftModel):
            raise TypeError(f"A {type(student).__name__} has no adapters to merge: use save_model.")
        if self.args.should_save:
            with self._card_beside(output_dir, is_adapter=False):
                merged(student).save_pretrained(output_dir)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(output_dir)

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card,
    ) -> CommitInfo | Future | None:
        """Saves the student to `output_dir` and pushes it to the Hub in a single commit.

        The commit has the student, its tokenizer, its card, plots, a report and exports (`docs/publishing.md` has the
        list). It never has the teacher, optimizer states, the arguments, or a file that contains a token or a local
        path.

        Args:
            commit_message: the commit message.
            blocking: whether to wait until the push is done.
            token: a token with write access; by default `args.hub_token`, `HF_TOKEN` or the token of `hf auth login`.
            revision: the branch; by default `args.hub_revision`, or main.
            private: whether a new repository is private.
            card: options of `create_model_card`, also used for later cards.

        Returns:
            The `CommitInfo` of `huggingface_hub`, or a `Future` of it if `blocking` is False; None on all processes but
            the first.

        Raises:
            ValueError: if a file contains a token or a local path.
            OSError: if the Hub cannot be reached or refuses the push. The student is already saved on disk.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._card_options = replace(self._card_options, **card)
        self._finish_current_push()
        self.save_model(_internal_call=True)  # the student is on disk even if the push fails
        if not self.is_world_process_zero():
            return None
        push = partial(self._push, commit_message, token, revision or self.args.hub_revision, private)
        return push() if blocking else hub_api().run_as_future(push)

    def _push(self, message: str, token: str | None, revision: str | None, private: bool | None = None) -> CommitInfo:
        """Pushes the listed files of `output_dir`."""
        folder = self.args.output_dir
        token = self.args.hub_token if token is None else token
        files = files_to_push(folder)
        check_nothing_private(folder, files, token)
        name = self.hub_model_id or self.args.hub_model_id or Path(folder).absolute().name
        with clear_errors(f"Pushing to {name}", how_to_push_later(folder, name)):
            if self.hub_model_id is None:
                self._make_repository(token, private)
                with self._card_beside(folder, is_adapter=isinstance(self.model, PeftModel)):
                    pass  # the card can now name the repository to load from
            return commit_files(folder, files, self.hub_model_id, message, token, revision)

    def _make_repository(self, token: str | None, private: bool | None) -> None:
        """`init_hf_repo(token, private)`. Before version 5.23, transformers has no argument `private`."""
        of_args = self.args.hub_private_repo
        self.args.hub_private_repo = of_args if private is None else private
        try:
            self.init_hf_repo(token=token)
        finally:
            self.args.hub_private_repo = of_args

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As in `Trainer`, but without the files that only training needs."""
        args = self.args
        if self._unfinished_run_dir is not None or args.hub_strategy == HubStrategy.END:
            return
        if not self.is_world_process_zero():
            return
        if args.hub_always_push:
            self._finish_current_push()  # it reads files that are replaced below
        elif self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self._tell_of_failed_pushes()
        self.callback_handler.on_push_begin(args, self.state, self.control)
        with self._card_beside(args.output_dir, is_adapter=isinstance(self.model, PeftModel)):
            for name in files_to_push(checkpoint_folder):
                if name != "README.md":
                    unfinished = os.path.join(args.output_dir, f".{name}.unfinished")
                    shutil.copy(os.path.join(checkpoint_folder, name), unfinished)
                    os.replace(unfinished, os.path.join(args.output_dir, name))
        message = f"Training in progress, step {self.state.global_step}"
        self.push_in_progress = PushInProgress(
            [hub_api().run_as_future(self._push, message, args.hub_token, args.hub_revision)]
        )

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._tell_of_failed_pushes()

    def _tell_of_failed_pushes(self) -> None:
        """Warns about background pushes that failed, which `Trainer` does not."""
        push = getattr(self, "push_in_progress", None)
        jobs = [] if push is None else push.jobs
        for job in jobs:
            if job.done() and (error := job.exception()) is not None:
                logger.warning(f"A push during training failed. {error}")
        if jobs and all(job.done() for job in jobs):
            self.push_in_progress = None
