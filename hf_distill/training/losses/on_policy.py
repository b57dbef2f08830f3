"""On-policy distillation: the student writes the completions that it is trained on.

The tokens are drawn with the Gumbel-max trick, from noise that depends on the seed, the step and the prompt alone. So
the completions are the same however a step is split into micro-batches and processes, and after a resume.

Reference: Agarwal et al., 2024, GKD, https://arxiv.org/abs/2306.13649
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, Trainer

from hf_distill.adapters import transformers_model
from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.lengths import most_tokens
from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.known_indices import SCORED_INDICES

READ = {"input_ids", "attention_mask", "labels", SCORED_INDICES}
"""The entries of a batch whose prompts can be found."""


class OnPolicyArguments(Protocol):
    """The training arguments that say how the student writes."""

    seed: int
    on_policy_fraction: float
    on_policy_max_new_tokens: int

    @property
    def alpha_task(self) -> object: ...


def check_on_policy(
    args: OnPolicyArguments,
    student: PreTrainedModel,
    head: Head,
    teacher: Any,
    tokenizer: Any,
    accelerator: Accelerator,
) -> None:
    """Checks that the student can write completions and that a teacher can read them.

    Raises:
        ValueError: if it cannot.
    """
    if not 0 <= args.on_policy_fraction <= 1:
        raise ValueError(f"on_policy_fraction={args.on_policy_fraction} should be from 0 (never) to 1 (every step).")
    if args.on_policy_max_new_tokens < 1:
        raise ValueError(f"on_policy_max_new_tokens={args.on_policy_max_new_tokens} should be 1 or more.")
    if not args.on_policy_fraction:
        return
    given = f"on_policy_fraction={args.on_policy_fraction}"
    if not (head.learns_to_stop and student.can_generate()):
        raise ValueError(
            f"{given} needs a causal language model, not a {type(student).__name__}: load the student with "
            f"AutoModelForCausalLM, or leave it out."
        )
    if teacher is None or teacher.model is None:
        raise ValueError(
            f"{given} needs a teacher that reads what the student writes: pass teacher_model, without stored targets."
        )
    if getattr(tokenizer, "pad_token_id", None) is None:
        raise ValueError(f"{given} needs a tokenizer with a padding token: pass it as processing_class.")
    if args.alpha_task:
        raise ValueError(
            f"{given} needs alpha_task=0: the labels of such a completion are what the student itself wrote."
        )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"{given} does not work with {accelerator.distributed_type.value}, where no process has the whole student: "
            f"use DDP or one process."
        )


class OnPolicyTrainer(Trainer):
    """A `Trainer` that lets the student write the completions of some steps."""

    args: Any
    processing_class: Any

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | None]:
        """As in `Trainer`. In a share of the steps, the completions are the student's."""
        if self._is_on_policy(self.state.global_step):
            epoch_iterator = map(self._with_own_completions, epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _is_on_policy(self, step: int) -> bool:
        """True for this share of the steps, evenly spaced."""
        fraction = self.args.on_policy_fraction
        return int((step + 1) * fraction) > int(step * fraction)

    def _with_own_completions(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The prompts of a batch, each completed by the student."""
        args, padding = self.args, self.processing_class.pad_token_id
        student = transformers_model(self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False))
        prompts = prompts_of(batch)
        most = most_tokens(student) - args.on_policy_max_new_tokens
        if (longest := max(map(len, prompts))) > most:
            raise ValueError(
                f"A prompt has {longest} tokens, but with on_policy_max_new_tokens={args.on_policy_max_new_tokens} the "
                f"student accepts {most:g}: leave out longer prompts."
            )
        ids = pad_sequence(prompts, batch_first=True, padding_value=padding, padding_side="left").to(args.device)
        ends = student.generation_config.eos_token_id
        options = GenerationConfig(
            max_new_tokens=args.on_policy_max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=padding
        )
        noise = SeededNoise([_key(own, args.seed, self.state.global_step) for own in prompts], ids.shape[1])
        was_training = student.training
        student.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                tokens = student.generate(
                    input_ids=ids,
                    attention_mask=pad_sequence(
                        [torch.ones_like(own) for own in prompts], batch_first=True, padding_side="left"
                    ).to(args.device),
                    generation_config=options,
                    logits_processor=LogitsProcessorList([noise]),
                )
        finally:
            student.train(was_training)
        end_ids = torch.tensor([ends] if isinstance(ends, int) else ends or [])
        return _batch(prompts, tokens[:, ids.shape[1] :], end_ids, padding)


def prompts_of(batch: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The tokens of each row before its first label.

    Raises:
        ValueError: if rows are packed, or if one has no prompt.
    """
    if not {"input_ids", "labels"} <= batch.keys() <= READ:
        found = ", ".join(name for name in batch if name != SCORED_INDICES)
        raise ValueError(
            f"on_policy_fraction needs batches with input_ids, attention_mask and labels, not {found}: put one chat "
            f"into a row (packing='none', without SeparateDocuments)."
        )
    prompts = []
    attention = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], attention, strict=True):
        has_label = labels.ne(IGNORE_INDEX) & mask.bool()
        first = int(has_label.int().argmax()) if has_label.any() else len(ids)
        prompt = ids[:first][mask[:first].bool()]
        if not len(prompt):
            raise ValueError(
                "on_policy_fraction needs rows that begin with a prompt, whose tokens have the label -100: encode them "
                "with encode_chats."
            )
        prompts.append(prompt)
    return prompts


class SeededNoise(LogitsProcessor):
    """Adds Gumbel noise to logits, so that the largest sum is a sample of their softmax.

    Args:
        keys: for each row, what its noise depends on.
        start: tokens of the prompts, with their padding.
    """

    def __init__(self, keys: Sequence[int], start: int):
        self.keys, self.start = keys, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = input_ids.shape[1] - self.start
        noise = torch.stack([self._noise(key, place, scores.shape[1]) for key in self.keys])
        return scores.float() + noise.to(scores.device)

    @staticmethod
    def _noise(key: int, place: int, num_tokens: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed((key + place) % 2**63)
        return -torch.log(torch.empty(num_tokens, dtype=torch.float64).exponential_(generator=generator)).float()


def _key(prompt: torch.Tensor, seed: int, step: int) -> int:
    content = f"{seed} {step} {prompt.tolist()}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest())


def _batch(
    prompts: Sequence[torch.Tensor], completions: torch.Tensor, ends: torch.Tensor, padding: int
) -> dict[str, torch.Tensor]:
    """Prompts with completions, which end with the first token that ends a text."""
    rows, labels = [], []
    for prompt, completion in zip(prompts, completions.to(prompts[0].device), strict=True):
        is_end = torch.isin(completion, ends.to(completion.device))
        length = int(is_end.int().argmax()) + 1 if is_end.any() else len(completion)
        rows.append(torch.cat([prompt, completion[:length]]))
        labels.append(torch.cat([torch.full_like(prompt, IGNORE_INDEX), completion[:length]]))
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=padding),
        "attention_mask": pad_sequence([torch.ones_like(own) for own in rows], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
    }
