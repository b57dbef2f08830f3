"""A tokenizer for pairs of texts, like BERT's."""

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.conftest import make_text_tokenizer


def make_pair_tokenizer() -> PreTrainedTokenizerFast:
    """Turns the pair `w5`, `w6` into the tokens 1, 5, 2, 6, 2, the last two of type 1, and `w5` into 1, 5, 2."""
    single = make_text_tokenizer()
    single.backend_tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = ("pad_token", "cls_token", "sep_token", "unk_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=single.backend_tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=single.model_max_length,
        **{name: getattr(single, name) for name in names},
    )
