"""A tokenizer and small data for question answering."""

import json
from pathlib import Path

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.conftest import make_text_tokenizer
