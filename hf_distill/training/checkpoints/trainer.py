"""A trainer that never leaves an incomplete checkpoint."""

import os
from collections.abc import Mapping

from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from hf_distill.training.checkpoints.folders import (
    last_whole_checkpoint,
    named_when_whole,
    warn_of_differences,
    whole_checkpoint,
    write_distillation_state,
)
from hf_distill.training.checkpoints.renamed import is_renamed, load_renamed
from hf_distill.training.publishing.trainer import PublishingTrainer


class CheckpointingTrainer(PublishingTrainer):
    """A `Trainer` that names a checkpoint once it is complete, and logs how a resumed training differs from it."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """As in `Trainer`, but warns if the checkpoint was written with another teacher or other losses."""
        if resume_from_checkpoint:
            if resume_from_checkpoint is True:
                resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            checkpoint = whole_checkpoint(resume_from_checkpoint)
            warn_of_differences(checkpoint, self._distillation_state())
            self._check_checkpoint(checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """As in `Trainer`, but a checkpoint gets its name only once it is complete."""
        run_dir = self._get_output_dir(trial)
        checkpoint = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

        writer, everyone = self.args.should_save, self.accelerator.wait_for_everyone
        with named_when_whole(checkpoint, writer, everyone) as unfinished:
            self._unfinished_run_dir = os.path.dirname(unfinished)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._unfinished_run_dir = None
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = checkpoint  # its final name
            if writer:
                self.state.save_to_json(os.path.join(unfinished, TRAINER_STATE_NAME))
                write_distillation_state(unfinished, self._distillation_state())
                self._write_beside_checkpoint(unfinished)

        if self.args.push_to_hub:
            self._push_from_checkpoint(checkpoint)
        if writer:
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As in `Trainer`, but also loads weights that the checkpoint has under other names."""
        target = self.model if model is None else model
        if self._has_own_format or not is_renamed(target, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_renamed(target, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """As in `Trainer`, but also loads weights that the checkpoint has under other names."""
        if self._has_own_format or not is_renamed(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()
        else:
            load_renamed(self.model, self.state.best_model_checkpoint)

    @property
    def _has_own_format(self) -> bool:
        """Whether an engine writes and reads the weights."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _get_output_dir(self, trial) -> str:
        return self._unfinished_run_dir or super()._get_output_dir(trial)

    def _distillation_state(self) -> Mapping[str, object]:
        """The distillation settings, which a resumed training is compared with."""
        raise NotImplementedError

    def _check_checkpoint(self, checkpoint: str) -> None:
        """Checks that the training can resume from a checkpoint."""
        raise NotImplementedError

    def _write_beside_checkpoint(self, checkpoint: str) -> None:
        """Writes what a resumed training needs in addition to `Trainer`'s files."""
        raise NotImplementedError
