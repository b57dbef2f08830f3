"""Schemas of requests and answers, for pydantic and OpenAPI."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from hf_distill.serving.limits import Limits

MAX_TOP_K = 1000
NUM_SCORES = "Number of scores to return for each text or pair of texts."
NUM_ANSWERS = "Number of answers to return for each question."
LONGEST_DETAIL = 300


class Score(BaseModel):
    label: str
    score: float


class Prediction(Score):
    """Prediction for one text: its class, or for a masked language model the masked token."""

    scores: list[Score] | None = Field(None, description="With `top_k`: that many scores, most likely first.")
    truncated: bool | None = Field(None, description="True if the text was too long for the model and was truncated.")


class Entity(Score):
    text: str
    start: int = Field(description="Position of the entity in the text, in characters.")
    end: int


class Entities(BaseModel):
    """Prediction for one text by a token classification model."""

    entities: list[Entity]
    truncated: bool | None = Field(None, description="True if the text was too long for the model and was truncated.")


class FoundAnswer(BaseModel):
    answer: str = Field(description="A part of the context; empty if the model finds that there is no answer.")
    score: float
    start: int = Field(description="Position of the answer in the context, in characters.")
    end: int


class QuestionAnswer(FoundAnswer):
    """Answer to one question by a question answering model."""

    answers: list[FoundAnswer] | None = Field(
        None, description="With `top_k`: that many answers, most likely first, or fewer if there are not as many."
    )


class Generated(BaseModel):
    """Text that a model generated, such as a summary, a translation or a transcript."""

    text: str
    truncated: bool | None = Field(None, description="True if the text was too long for the model and was truncated.")


AnyAnswer = Prediction | Entities | QuestionAnswer | Generated

Answer = AnyAnswer | list[AnyAnswer]
"""Answer for one text, or a list in the order of the texts."""


class Error(BaseModel):
    detail: str


class Body(BaseModel):
    """A request body.

    Attributes:
        inputs: what the model reads: texts or pairs of texts.
        is_one: True if the answer is that for the only input, instead of a list.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    inputs: ClassVar[Any]
    is_one: ClassVar[bool] = False


class Bodies:
    """The request bodies of `/predict` within the limits of a service.

    For a model that reads texts: `{"text": ...}` or `{"texts": [...]}`. For one that reads pairs:
    `{"text": ..., "text_pair": ...}` or `{"texts": [[..., ...], ...]}`. For question answering:
    `{"question": ..., "context": ...}` or `{"questions": [{"question": ..., "context": ...}, ...]}`.

    Args:
        limits: the limits.
        reads: what the model reads: a name in `READS`.

    Attributes:
        limits: the limits.
        schema: JSON schema for OpenAPI.
    """

    def __init__(self, limits: Limits, reads: str = "text"):
        self.limits = limits
        one, several = READS[reads](limits)
        either = Annotated[one, Tag("text")] | Annotated[several, Tag("texts")]  # type: ignore[valid-type]
        self._adapter = TypeAdapter(Annotated[either, Discriminator(_which)])
        self.schema: dict[str, Any] = {"oneOf": [_schema(one), _schema(several)]}

    def read(self, body: bytes) -> Body:
        """Parses a body. Raises `pydantic.ValidationError`, also for JSON that is nested too deeply."""
        return self._adapter.validate_json(body)


def bounds_of_text(limits: Limits) -> Any:
    not_blank = {"pattern": r"[^\s\x1c-\x1f\x85]"}  # only documented here; the tokenizer gives the clearer error
    return Field(min_length=1, max_length=limits.max_characters, json_schema_extra=not_blank)


def _of_texts(limits: Limits) -> tuple[type[Body], type[Body]]:
    a_text = Annotated[str, bounds_of_text(limits)]
    some_texts = Annotated[list[a_text], Field(min_length=1, max_length=limits.max_texts)]
    a_number = Annotated[int, Field(ge=1, le=MAX_TOP_K, description=NUM_SCORES), BeforeValidator(whole)]

    class OneText(Body):
        text: a_text
        top_k: a_number = 1
        is_one = True

        @property
        def inputs(self) -> list[str]:
            return [self.text]

    class SeveralTexts(Body):
        texts: some_texts
        top_k: a_number = 1

        @property
        def inputs(self) -> list[str]:
            return self.texts

    return OneText, SeveralTexts


def _of_pairs(limits: Limits) -> tuple[type[Body], type[Body]]:
    a_text = Annotated[str, bounds_of_text(limits)]
    some_pairs = Annotated[list[tuple[a_text, a_text]], Field(min_length=1, max_length=limits.max_texts)]
    a_number = Annotated[int, Field(ge=1, le=MAX_TOP_K, description=NUM_SCORES), BeforeValidator(whole)]

    class OnePair(Body):
        text: a_text
        text_pair: a_text
        top_k: a_number = 1
        is_one = True

        @property
        def inputs(self) -> list[tuple[str, str]]:
            return [(self.text, self.text_pair)]

    class SeveralPairs(Body):
        texts: some_pairs
        top_k: a_number = 1

        @property
        def inputs(self) -> list[tuple[str, str]]:
            return self.texts

    return OnePair, SeveralPairs


def _of_questions(limits: Limits) -> tuple[type[Body], type[Body]]:
    a_text = Annotated[str, bounds_of_text(limits)]
    a_number = Annotated[int, Field(ge=1, le=MAX_TOP_K, description=NUM_ANSWERS), BeforeValidator(whole)]

    class Question(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        question: a_text
        context: a_text

    class OneQuestion(Body):
        question: a_text
        context: a_text
        top_k: a_number = 1
        is_one = True

        @property
        def inputs(self) -> list[tuple[str, str]]:
            return [(self.question, self.context)]

    class SeveralQuestions(Body):
        questions: Annotated[list[Question], Field(min_length=1, max_length=limits.max_texts)]
        top_k: a_number = 1

        @property
        def inputs(self) -> list[tuple[str, str]]:
            return [(own.question, own.context) for own in self.questions]

    return OneQuestion, SeveralQuestions


READS = {"text": _of_texts, "pair": _of_pairs, "question": _of_questions}
"""The bodies for one input and for several, by what a model reads."""


def _schema(body: type[Body]) -> dict[str, Any]:
    """The JSON schema of a body, without references, which would not be found within OpenAPI."""
    schema = body.model_json_schema()
    for definition in schema.pop("$defs", {}).values():
        for own in schema["properties"].values():
            if "$ref" in own.get("items", {}):
                own["items"] = definition
    return schema


def _which(body: Any) -> str:
    return "texts" if isinstance(body, dict) and ("texts" in body or "questions" in body) else "text"


def whole(number: Any) -> Any:
    """Converts 12.0 to 12, which are the same number in JSON."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def describe(error: ValidationError, is_tagged: bool = True) -> str:
    """Describes the errors in one line, without repeating the input.

    Args:
        error: the errors.
        is_tagged: whether the body is one of several kinds, whose names are not shown.
    """
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        f"{'.'.join(str(part) for part in own['loc'][is_tagged:])}: {own['msg']}".removeprefix(": ") for own in errors
    ]
    return "; ".join(lines)[:LONGEST_DETAIL]
