"""The heads with one distribution per token: token classification and language modelling."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from transformers import DataCollatorForSeq2Seq, EncoderDecoderModel

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.data.transcripts import collate_speech
from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.inputs import attended_positions, decoder_input_ids_of, first_examples
from hf_distill.training.scoring.scored import Scored
from hf_distill.training.scoring.widths import vocab_size


class TokenHead(Head):
    """One distribution per token: token classification."""

    tasks: tuple[str, ...] = ("TOKEN_CLASSIFICATION",)
    class_names = ("ForTokenClassification",)
    auto_class = "AutoModelForTokenClassification"
    pipeline_tag: str | None = "token-classification"
    collator = "DataCollatorForTokenClassification"
    problem_type = None
    per_token = True
    takes_text_columns = False
    takes_groups = False

    def score(self, inputs, kl_positions="labels", num_examples=None):
        attended = first_examples(self._attended(inputs), num_examples)
        labels = self._token_labels(inputs)
        if kl_positions == "attended":
            positions = attended
        elif labels is None:
            raise ValueError(
                f"The batch has no labels, only {', '.join(inputs)}, so no position would be scored: use a collator "
                f"that adds labels, such as DataCollatorForLanguageModeling, or set kl_positions='attended' and "
                f"alpha_task=0."
            )
        else:
            positions = labels.ne(IGNORE_INDEX) & attended
        labelled = torch.zeros_like(positions) if labels is None else labels.ne(IGNORE_INDEX) & positions
        encoder_attended = self._encoder_attended(inputs)
        if encoder_attended is not None:
            encoder_attended = first_examples(encoder_attended, num_examples)
        return Scored(attended, positions, labelled, labels, encoder_attended=encoder_attended)

    def scored_logits(self, output, scored):
        return scored.select(output.logits)

    def logits_per_token(self, config):
        return config.num_labels

    def logits_of_stored(self, stored, scored):
        return scored.select(stored)

    def of_positions(self, values, scored):
        length = scored.positions.shape[1]
        return scored.select(values.unsqueeze(1).expand(-1, length, *values.shape[1:]))

    def _attended(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return attended_positions(inputs)

    def _encoder_attended(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The attended positions of the encoder; None without one."""
        return None

    def _token_labels(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The correct class of each token, `[batch, length]`."""
        return inputs.get("labels")


class MaskedLMHead(TokenHead):
    """One distribution per token, over the vocabulary: the token that was masked."""

    tasks: tuple[str, ...] = ("MASKED_LM",)
    class_names = ("ForMaskedLM",)
    auto_class = "AutoModelForMaskedLM"
    pipeline_tag: str | None = "fill-mask"
    over_vocabulary = True
    named_classes = False
    can_be_stored = False  # other tokens are masked in every epoch

    def logits_per_token(self, config):
        return vocab_size(config)


class CausalLMHead(MaskedLMHead):
    """One distribution per token, over the vocabulary: the token that comes next.

    The labels are the tokens themselves. They are shifted here, the same way for every model.
    """

    tasks = ("CAUSAL_LM",)
    class_names = ("ForCausalLM",)
    auto_class = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"
    learns_to_stop = True
    can_be_stored = True

    def _token_labels(self, inputs):
        labels = inputs.get("labels")
        return None if labels is None else F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


class PermutedLMHead(MaskedLMHead):
    """XLNet's head: one distribution per token that `target_mapping` names, with the label at the same index.

    `AutoModelForCausalLM` loads it, but every token attends to every other unless `perm_mask` forbids it.
    `DataCollatorForPermutationLanguageModeling` creates that mask.
    """

    tasks = ()
    class_names = ("XLNetLMHeadModel",)
    auto_class = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"
    can_be_stored = True


class Seq2SeqLMHead(MaskedLMHead):
    """One distribution per token of the target, over the vocabulary.

    The decoder reads `decoder_input_ids`, the labels shifted right by one. If the batch has none, they are derived from
    the labels, as the model itself does.
    """

    tasks = ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT")
    class_names = ("ForConditionalGeneration",)
    auto_class = "AutoModelForSeq2SeqLM"
    pipeline_tag = None
    is_exported = False
    collator = "DataCollatorForSeq2Seq"
    reads_labels = True
    can_be_stored = True

    def padding_collator(self, processing_class):
        is_for_speech = hasattr(processing_class, "feature_extractor")
        return collate_speech if is_for_speech else DataCollatorForSeq2Seq(processing_class)

    def complete(self, inputs, model):
        labels = inputs.get("labels")
        if labels is None or "decoder_input_ids" in inputs or "decoder_inputs_embeds" in inputs:
            return inputs
        decoder_input_ids = decoder_input_ids_of(model, labels)
        made = {"decoder_input_ids": decoder_input_ids}
        if isinstance(model, EncoderDecoderModel):  # the only model that derives a mask from them too
            made["decoder_attention_mask"] = decoder_input_ids.ne(model.config.pad_token_id).long()
        return {**made, **inputs}

    def _encoder_attended(self, inputs):
        return attended_positions(inputs)

    def _attended(self, inputs):
        if (attention_mask := inputs.get("decoder_attention_mask")) is not None:
            return attention_mask.bool()
        if (labels := inputs.get("labels")) is not None:
            return labels.ne(IGNORE_INDEX)
        if (decoder_input_ids := inputs.get("decoder_input_ids")) is not None:
            return torch.ones_like(decoder_input_ids, dtype=torch.bool)
        raise ValueError(
            f"The batch has no labels and no decoder_input_ids, only {', '.join(inputs)}, so {self.model_name} has "
            f"nothing to score: use a collator that adds labels, such as DataCollatorForSeq2Seq."
        )
