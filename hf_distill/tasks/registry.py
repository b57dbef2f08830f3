"""All tasks by name, and the task of a trained model."""

from transformers import PreTrainedConfig

from hf_distill.lengths import reading_of
from hf_distill.tasks.audio_classification import AudioClassification
from hf_distill.tasks.causal_lm import CausalLM
from hf_distill.tasks.embedding import Embedding
from hf_distill.tasks.fill_mask import FillMask
from hf_distill.tasks.image_classification import ImageClassification
from hf_distill.tasks.question_answering import QuestionAnswering
from hf_distill.tasks.reranking import Reranking
from hf_distill.tasks.speech_recognition import SpeechRecognition
from hf_distill.tasks.summarization import Summarization
from hf_distill.tasks.task import Task
from hf_distill.tasks.text_classification import TextClassification
from hf_distill.tasks.text_pair_classification import TextPairClassification
from hf_distill.tasks.token_classification import TokenClassification
from hf_distill.tasks.translation import Translation

ROWS = (
    TextClassification(),
    TextPairClassification(),
    Embedding(),
    Reranking(),
    TokenClassification(),
    QuestionAnswering(),
    FillMask(),
    CausalLM(),
    ImageClassification(),
    AudioClassification(),
    SpeechRecognition(),
    Summarization(),
    Translation(),
)

TASKS: dict[str, Task] = {task.name: task for task in ROWS}
"""Tasks by name. Where several have the same head, a model that does not say its task has the first."""


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        ValueError: if there is none.
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r} must be one of {', '.join(TASKS)}.")
    return TASKS[name]


def task_of(config: PreTrainedConfig, model: str, name: str | None = None) -> Task:
    """The task that a model was trained for.

    Args:
        config: its config.
        model: its folder or Hub name, for errors.
        name: the task that was asked for. Default: the one that the config records, else the first that fits its head.

    Raises:
        ValueError: if the model has no head, or has the head of another task than the one that was asked for.
    """
    if name is not None:
        check_head(task_named(name), config, model)
        return TASKS[name]
    noted = reading_of(config).get("task")
    fitting = [own for own in TASKS.values() if own.has_head(config)]
    if noted in TASKS and TASKS[noted] in fitting:
        return TASKS[noted]
    if not fitting:
        raise ValueError(
            f"{model} has no head of a task ({', '.join(TASKS)}): fine-tune it first, with `hf-distill train`."
        )
    return fitting[0]


def check_head(task: Task, config: PreTrainedConfig, model: str) -> None:
    """Raises `ValueError` if a model has no head for the task. A config that names no class is not checked."""
    if not config.architectures or task.has_head(config):
        return
    others = [own.name for own in TASKS.values() if own.has_head(config) and not own.reads_no_head]
    if others:
        raise ValueError(f"{model} is a model for {' or '.join(others)}, not for {task.name}: set task={others[0]}.")
    raise ValueError(f"{model} has no head trained for {task.name}: fine-tune it first.")
