"""Schemas of requests and answers, for pydantic and OpenAPI."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from hf_distill.serving.limits import Limits

MAX_TOP_K = 1000
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


Answer = Prediction | Entities | list[Prediction | Entities]
"""Answer for one text, or a list in the order of the texts."""


class Error(BaseModel):
    detail: str


class Bodies:
    """The request bodies of `/predict` within the limits of a service: `{"text": ...}` or `{"texts": [...]}`.

    Attributes:
        limits: the limits.
        schema: JSON schema for OpenAPI.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        not_blank = {"pattern": r"[^\s\x1c-\x1f\x85]"}  # only documented here; the tokenizer gives the clearer error
        a_text = Annotated[str, Field(min_length=1, max_length=limits.max_characters, json_schema_extra=not_blank)]
        some_texts = Annotated[list[a_text], Field(min_length=1, max_length=limits.max_texts)]
        a_number = Annotated[
            int,
            Field(ge=1, le=MAX_TOP_K, description="Number of scores to return for each text."),
            BeforeValidator(_whole),
        ]

        class OneText(BaseModel):
            model_config = ConfigDict(extra="forbid", strict=True)
            text: a_text
            top_k: a_number = 1

        class SeveralTexts(BaseModel):
            model_config = ConfigDict(extra="forbid", strict=True)
            texts: some_texts
            top_k: a_number = 1

        either = Annotated[OneText, Tag("text")] | Annotated[SeveralTexts, Tag("texts")]
        self._adapter = TypeAdapter(Annotated[either, Discriminator(_which)])
        self.schema: dict[str, Any] = {"oneOf": [OneText.model_json_schema(), SeveralTexts.model_json_schema()]}

    def read(self, body: bytes) -> BaseModel:
        """Parses a body. Raises `pydantic.ValidationError`, also for JSON that is nested too deeply."""
        return self._adapter.validate_json(body)


def _which(body: Any) -> str:
    return "texts" if isinstance(body, dict) and "texts" in body else "text"


def _whole(number: Any) -> Any:
    """Converts 12.0 to 12, which are the same number in JSON."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def describe(error: ValidationError) -> str:
    """Describes the errors in one line, without repeating the input."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(str(part) for part in own['loc'][1:])}: {own['msg']}".removeprefix(": ") for own in errors]
    return "; ".join(lines)[:LONGEST_DETAIL]
