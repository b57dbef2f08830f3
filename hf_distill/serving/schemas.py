"""What is asked and what is answered, as pydantic and OpenAPI have it."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from hf_distill.serving.limits import Limits

MAX_TOP_K = 1000
LONGEST_DETAIL = 300


class Score(BaseModel):
    label: str
    score: float


class Prediction(Score):
    """Of one text, by a classifier; or, where a word was masked, the token in its place."""

    scores: list[Score] | None = Field(None, description="With `top_k`: that many, the likeliest first.")
    truncated: bool | None = Field(None, description="True where the end of the text was too much for the model.")


class Entity(Score):
    text: str
    start: int = Field(description="In characters of the text that was given.")
    end: int


class Entities(BaseModel):
    """Of one text, by a model that labels tokens."""

    entities: list[Entity]
    truncated: bool | None = Field(None, description="True where the end of the text was too much for the model.")


Answer = Prediction | Entities | list[Prediction | Entities]
"""To one text, or a list in the order of the texts."""


class Error(BaseModel):
    detail: str


class Bodies:
    """The bodies that `/predict` takes, within the limits of a service: `{"text": ...}` or `{"texts": [...]}`.

    Attributes:
        limits: those.
        schema: for OpenAPI.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        not_blank = {"pattern": r"[^\s\x1c-\x1f\x85]"}  # which is said in better words where the text is read
        a_text = Annotated[str, Field(min_length=1, max_length=limits.max_characters, json_schema_extra=not_blank)]
        some_texts = Annotated[list[a_text], Field(min_length=1, max_length=limits.max_texts)]
        a_number = Annotated[
            int,
            Field(ge=1, le=MAX_TOP_K, description="Say also this many scores of each text."),
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
        """Raises `pydantic.ValidationError`; of JSON that is nested too deeply, too."""
        return self._adapter.validate_json(body)


def _which(body: Any) -> str:
    return "texts" if isinstance(body, dict) and "texts" in body else "text"


def _whole(number: Any) -> Any:
    """12.0 is an integer in JSON."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def describe(error: ValidationError) -> str:
    """What is wrong, in a line without what was given."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(str(part) for part in own['loc'][1:])}: {own['msg']}".removeprefix(": ") for own in errors]
    return "; ".join(lines)[:LONGEST_DETAIL]
