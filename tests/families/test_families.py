"""A distilling step of every family that transformers has: equal to the three losses by hand, or refused with a reason.

`make test-families` tries every family that can be built tiny from its config; `make test` tries those that had errors.
"""

from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers.utils import logging

from tests.families.one_step import RefusedError, one_step
from tests.families.tiny import MAPPINGS, CannotBuildError, model_classes, time_limit

KNOWN_GOOD = Path(__file__).parents[2] / "constraints.txt"

TRAINED = 637
"""Number of families trained with the transformers version of constraints.txt when this was committed."""

REFUSED = {
    "EvollaForProteinText2Text": "is not an encoder-decoder",  # and not named as a causal model
    "IdeficsForVisionText2Text": "is not an encoder-decoder",
    "NemotronH_Omni_Reasoning_V3": "is not an encoder-decoder",
    "DiffusionGemmaForBlockDiffusion": "is not an encoder-decoder",  # denoises blocks
    "PPLCNetForImageClassification": "and no logits",
}
"""Refused models and their errors."""

ALL_LOGITS = {
    "ProphetNetForCausalLM": "its head reads another stream than the last hidden states",
    "ProphetNetForConditionalGeneration": "the same",
    "PerceiverForMaskedLM": "its head reads queries that are decoded after the last hidden states",
}
"""Models whose head cannot run on the scored positions only."""

SAMPLE = [
    ("AutoModelForMaskedLM", "ModernBertForMaskedLM"),  # get_decoder() is its output layer
    ("AutoModelForMaskedLM", "XLMWithLMHeadModel"),
    ("AutoModelForMaskedLM", "MobileBertForMaskedLM"),  # its output layer is never called
    ("AutoModelForMaskedLM", "PerceiverForMaskedLM"),  # its head does not read the hidden states
    ("AutoModelForCausalLM", "ModernBertDecoderForCausalLM"),
    ("AutoModelForCausalLM", "XLNetLMHeadModel"),
    ("AutoModelForCausalLM", "ProphetNetForCausalLM"),  # its head reads another stream
    ("AutoModelForCausalLM", "Gemma3ForConditionalGeneration"),  # sizes are those of a text config
    ("AutoModelForImageTextToText", "LlavaForConditionalGeneration"),
    ("AutoModelForImageTextToText", "VisionEncoderDecoderModel"),
    ("AutoModelForQuestionAnswering", "AlbertForQuestionAnswering"),  # declares that of another head
    ("AutoModelForSeq2SeqLM", "Qwen2AudioForConditionalGeneration"),  # a causal model
    ("AutoModelForSeq2SeqLM", "MarianMTModel"),  # named unlike the others, with a bias after its output layer
    ("AutoModelForSeq2SeqLM", "EncoderDecoderModel"),  # the backbone is inside of a decoder that has the head
    ("AutoModelForSeq2SeqLM", "ProphetNetForConditionalGeneration"),
    ("AutoModelForSeq2SeqLM", "FSMTForConditionalGeneration"),  # its base model has output embeddings
    ("AutoModelForSeq2SeqLM", "SwitchTransformersForConditionalGeneration"),  # reads the router's logits of the encoder
    ("AutoModelForSeq2SeqLM", "BlenderbotForConditionalGeneration"),  # no prepare_decoder_input_ids_from_labels
    ("AutoModelForSeq2SeqLM", "M2M100ForConditionalGeneration"),
    ("AutoModelForSeq2SeqLM", "NllbMoeForConditionalGeneration"),
    ("AutoModelForSeq2SeqLM", "SeamlessM4TForTextToText"),
    ("AutoModelForSpeechSeq2Seq", "WhisperForConditionalGeneration"),
    ("AutoModelForSpeechSeq2Seq", "Speech2TextForConditionalGeneration"),
    ("AutoModelForSpeechSeq2Seq", "SeamlessM4TForSpeechToText"),
    ("AutoModelForAudioClassification", "WhisperForAudioClassification"),  # an encoder alone, with a decoder's config
    (
        "AutoModelForImageClassification",
        "PerceiverForImageClassificationLearned",
    ),  # its states are its second output
    ("AutoModelForImageClassification", "DeiTForImageClassificationWithTeacher"),  # an output without room for a loss
    ("AutoModelForImageClassification", "PvtForImageClassification"),  # classes without names
]


@pytest.mark.parametrize(("auto_class", "class_name"), SAMPLE, ids=[name for _, name in SAMPLE])
def test_step_is_the_one_by_hand(auto_class, class_name, tmp_path):
    runs_alone = one_step(auto_class, class_name, str(tmp_path))
    assert runs_alone == (class_name not in ALL_LOGITS)


@pytest.mark.families
def test_every_family(tmp_path, capsys):
    logging.set_verbosity_error()
    outcomes = defaultdict(dict)
    for auto_class, class_name in model_classes():
        outcome, reason = outcome_of(auto_class, class_name, str(tmp_path))
        outcomes[outcome][f"{auto_class}: {class_name}"] = reason
    counts = Counter({outcome: len(families) for outcome, families in outcomes.items()})
    installed = f"transformers=={version('transformers')}"
    with capsys.disabled():
        print(f"\n{installed}: " + ", ".join(f"{counts[name]} {name}" for name in OUTCOMES))
        for outcome in OUTCOMES[1:]:
            for family, reason in outcomes[outcome].items():
                print(f"{outcome}: {family}: {reason}")
    assert not outcomes["wrong"]
    assert all(REFUSED.get(family.split()[1], "?") in reason for family, reason in outcomes["refused"].items())
    assert {family.split()[1] for family, of in outcomes["trained"].items() if of == "all logits"} <= set(ALL_LOGITS)
    assert set(MAPPINGS) == {family.split(":")[0] for family in outcomes["trained"]}
    if installed in KNOWN_GOOD.read_text().splitlines():
        assert counts["trained"] >= TRAINED


OUTCOMES = ("trained", "refused", "could not build", "wrong")


def outcome_of(auto_class: str, class_name: str, output_dir: str) -> tuple[str, str]:
    """The outcome and its reason."""
    try:
        with time_limit(60):
            runs_alone = one_step(auto_class, class_name, output_dir)
    except RefusedError as error:
        return "refused", str(error)
    except (CannotBuildError, TimeoutError) as error:
        return "could not build", " ".join(str(error).split())[:200]
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    return "trained", "" if runs_alone else "all logits"
