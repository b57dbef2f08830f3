"""Tasks that can be trained, evaluated and reported from the shell. Each task is one row of `TASKS`."""

from hf_distill.tasks.audio_classification import AudioClassificationArguments
from hf_distill.tasks.causal_lm import CausalLMArguments
from hf_distill.tasks.classifying import classify_texts
from hf_distill.tasks.embedding import EmbeddingArguments
from hf_distill.tasks.evaluation import evaluate_model
from hf_distill.tasks.fill_mask import FillMaskArguments
from hf_distill.tasks.image_classification import ImageClassificationArguments
from hf_distill.tasks.question_answering import QuestionAnsweringArguments
from hf_distill.tasks.registry import TASKS
from hf_distill.tasks.report import write_report
from hf_distill.tasks.reranking import RerankingArguments
from hf_distill.tasks.speech_recognition import SpeechRecognitionArguments
from hf_distill.tasks.summarization import SummarizationArguments
from hf_distill.tasks.task import Task
from hf_distill.tasks.text_classification import TextClassificationArguments
from hf_distill.tasks.text_pair_classification import TextPairClassificationArguments
from hf_distill.tasks.token_classification import TokenClassificationArguments
from hf_distill.tasks.training import train_model
from hf_distill.tasks.translation import TranslationArguments

__all__ = [
    "TASKS",
    "AudioClassificationArguments",
    "CausalLMArguments",
    "EmbeddingArguments",
    "FillMaskArguments",
    "ImageClassificationArguments",
    "QuestionAnsweringArguments",
    "RerankingArguments",
    "SpeechRecognitionArguments",
    "SummarizationArguments",
    "Task",
    "TextClassificationArguments",
    "TextPairClassificationArguments",
    "TokenClassificationArguments",
    "TranslationArguments",
    "classify_texts",
    "evaluate_model",
    "train_model",
    "write_report",
]
