"""Requests and answers of `/embed`, and of `/v1/embeddings` in the format of OpenAI, so that its clients work here."""

import base64
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter

from hf_distill.serving.limits import Limits
from hf_distill.serving.schemas import Body, bounds_of_text, whole

FLOAT32 = "<f4"
"""Little-endian, as clients of OpenAI expect."""


class Embeddings(BaseModel):
    """The vectors of the texts, in their order."""

    embeddings: list[list[float]]
    truncated: list[int] | None = Field(
        None, description="Positions of the texts, from 0, that were too long for the model and were truncated."
    )


class EmbeddedText(BaseModel):
    """A vector in the format of OpenAI."""

    object: Literal["embedding"]
    index: int = Field(description="Position of the text in the request, from 0.")
    embedding: list[float] | str = Field(description="Numbers, or base64 of little-endian float32.")


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors of the texts in the format of OpenAI."""

    object: Literal["list"]
    data: list[EmbeddedText]
    model: str
    usage: Usage


@dataclass(frozen=True)
class Vector:
    """The vector of a text.

    Attributes:
        values: `[width]` in fp32.
        tokens: number of tokens that the model read.
        truncated: whether the text was truncated.
    """

    values: np.ndarray
    tokens: int
    truncated: bool


def to_text(values: np.ndarray) -> str:
    """A vector in base64, as it travels from a worker to the service, and to clients that ask for it."""
    return base64.b64encode(np.asarray(values, FLOAT32).tobytes()).decode()


def from_entry(entry: dict[str, Any]) -> Vector:
    """The vector in the entry of a worker."""
    values = np.frombuffer(base64.b64decode(entry["embedding"]), FLOAT32)
    return Vector(values, entry["tokens"], entry["truncated"])


def shortened(values: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first values of a vector, at length 1; the vector itself if it is not to be shortened."""
    if dimensions is None or dimensions == len(values):
        return values
    kept = values[:dimensions]
    return kept / max(float(np.linalg.norm(kept)), 1e-12)


class EmbedBody(Body):
    """A request for vectors.

    Attributes:
        prompt_name: name of a prompt of the model.
        dimensions: number of values wanted; None for all.
    """

    prompt_name: str | None
    dimensions: int | None = None

    def answer(self, vectors: Sequence[Vector], model: str) -> dict[str, Any]:
        """The answer, as JSON."""
        raise NotImplementedError


class EmbedBodies:
    """The request bodies of a path within the limits of a service.

    Args:
        limits: the limits.
        make: makes the class of the body from the limits.

    Attributes:
        limits: the limits.
        schema: JSON schema for OpenAPI.
    """

    def __init__(self, limits: Limits, make: Any):
        self.limits = limits
        body = make(limits)
        self._adapter: Any = TypeAdapter(body)
        self.schema: dict[str, Any] = body.model_json_schema()

    def schema_for(self, width: int, prompt_names: Sequence[str]) -> dict[str, Any]:
        """The schema with what a model knows: the width of its vectors, and its prompts."""
        properties = copy.deepcopy(self.schema["properties"])
        properties["dimensions"]["anyOf"][0]["maximum"] = width
        properties["prompt_name"]["anyOf"] = [
            *([{"type": "string", "enum": list(prompt_names)}] if prompt_names else []),
            {"type": "null"},
        ]
        return {**self.schema, "properties": properties}

    def read(self, content: bytes) -> EmbedBody:
        """Parses a body. Raises `pydantic.ValidationError`, also for JSON that is nested too deeply."""
        return self._adapter.validate_json(content)


PROMPT_NAME = "Name of a prompt of the model, which is put in front of each text."


def of_texts(limits: Limits) -> type[EmbedBody]:
    """`{"texts": [...], "prompt_name": ...}`"""
    a_text = Annotated[str, bounds_of_text(limits)]
    some_texts = Annotated[list[a_text], Field(min_length=1, max_length=_most(limits))]

    class Texts(EmbedBody):
        texts: some_texts
        prompt_name: str | None = Field(None, description=PROMPT_NAME)
        dimensions: Annotated[int, Field(ge=1), BeforeValidator(whole)] | None = None

        @property
        def inputs(self) -> list[str]:
            return self.texts

        def answer(self, vectors: Sequence[Vector], model: str) -> dict[str, Any]:
            truncated = [number for number, own in enumerate(vectors) if own.truncated]
            found = [shortened(own.values, self.dimensions).tolist() for own in vectors]
            return {"embeddings": found} | ({"truncated": truncated} if truncated else {})

    return Texts


def of_openai(limits: Limits) -> type[EmbedBody]:
    """`{"input": ..., "model": ..., "encoding_format": ..., "dimensions": ...}`; other fields are ignored."""
    a_text = Annotated[str, bounds_of_text(limits)]
    some_texts = Annotated[list[a_text], Field(min_length=1, max_length=_most(limits))]

    one_or_several = Annotated[a_text, Tag("text")] | Annotated[some_texts, Tag("texts")]
    either = Annotated[one_or_several, Discriminator(lambda given: "texts" if isinstance(given, list) else "text")]

    class Input(EmbedBody):
        model_config = ConfigDict(extra="ignore")
        input: Annotated[either, BeforeValidator(_no_tokens)]
        model: str | None = Field(None, description="Ignored: there is one model.")
        encoding_format: Literal["float", "base64"] | None = "float"
        dimensions: Annotated[int, Field(ge=1), BeforeValidator(whole)] | None = Field(
            None, description="Keep that many values, and scale the vectors to length 1."
        )
        prompt_name: str | None = Field(None, description=PROMPT_NAME)

        @property
        def inputs(self) -> list[str]:
            return [self.input] if isinstance(self.input, str) else self.input

        def answer(self, vectors: Sequence[Vector], model: str) -> dict[str, Any]:
            in_base64 = self.encoding_format == "base64"
            found = [shortened(own.values, self.dimensions) for own in vectors]
            data = [
                {"object": "embedding", "index": index, "embedding": to_text(own) if in_base64 else own.tolist()}
                for index, own in enumerate(found)
            ]
            tokens = sum(own.tokens for own in vectors)
            usage = {"prompt_tokens": tokens, "total_tokens": tokens}
            return {"object": "list", "data": data, "model": model, "usage": usage}

    return Input


def _most(limits: Limits) -> int:
    return min(limits.max_documents, limits.max_queue)


def _no_tokens(given: Any) -> Any:
    """Raises `ValueError` for token numbers, which clients of OpenAI may send in place of texts."""
    first = given[0] if isinstance(given, list) and given else None
    if isinstance(first, int | list):
        raise ValueError("must be a text or a list of texts; token numbers of another tokenizer have no meaning here")
    return given
