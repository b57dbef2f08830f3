"""Requests and answers of `/rerank`: the documents of a query, in the order of their scores.

The formats are those of other rerankers, so that their clients work here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter

from hf_distill.serving.limits import Limits
from hf_distill.serving.schemas import Body, bounds_of_text, whole


class Document(BaseModel):
    text: str


class RankedDocument(BaseModel):
    """A document in the format of Cohere and Jina."""

    index: int = Field(description="Position of the document in the request, from 0.")
    relevance_score: float
    document: Document | None = Field(None, description="With `return_documents`: the document.")
    truncated: bool | None = Field(None, description="True if query and document were too long and were truncated.")


class Ranking(BaseModel):
    """The most relevant documents, best first."""

    results: list[RankedDocument]


class RankedText(BaseModel):
    """A document in the format of Text Embeddings Inference."""

    index: int = Field(description="Position of the text in the request, from 0.")
    score: float
    text: str | None = Field(None, description="With `return_text`: the text.")
    truncated: bool | None = Field(None, description="True if query and text were too long and were truncated.")


@dataclass(frozen=True)
class Ranked:
    """A document with its score, in the order of a ranking."""

    index: int
    score: float
    truncated: bool


NUM_RESULTS = "Number of documents to return. Default: all."

RerankAnswer = Ranking | list[RankedText]
"""Answer to a request with `documents`, or to one with `texts`."""


class RerankBodies:
    """The request bodies of `/rerank` within the limits of a service.

    `{"query": ..., "documents": [...], "top_n": n}` as for Cohere and Jina, or `{"query": ..., "texts": [...]}` as for
    Text Embeddings Inference. Other fields that such clients send, such as `model`, are ignored.

    Attributes:
        limits: the limits.
        schema: JSON schema for OpenAPI.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        a_text = Annotated[str, bounds_of_text(limits)]
        most = min(limits.max_documents, limits.max_queue)
        some_texts = Annotated[list[a_text], Field(min_length=1, max_length=most)]
        a_number = Annotated[int, Field(ge=1, description=NUM_RESULTS), BeforeValidator(whole)]

        class Documents(Body):
            model_config = ConfigDict(extra="ignore")
            query: a_text
            documents: some_texts
            top_n: a_number | None = None
            return_documents: bool | None = None

            @property
            def inputs(self) -> list[tuple[str, str]]:
                return [(self.query, document) for document in self.documents]

            def answer(self, ranked: Sequence[Ranked]) -> dict[str, Any]:
                shown = [
                    {"index": own.index, "relevance_score": own.score}
                    | ({"document": {"text": self.documents[own.index]}} if self.return_documents else {})
                    | ({"truncated": True} if own.truncated else {})
                    for own in ranked[: self.top_n]
                ]
                return {"results": shown}

        class Texts(Body):
            model_config = ConfigDict(extra="ignore")
            query: a_text
            texts: some_texts
            return_text: bool | None = None

            @property
            def inputs(self) -> list[tuple[str, str]]:
                return [(self.query, text) for text in self.texts]

            def answer(self, ranked: Sequence[Ranked]) -> list[dict[str, Any]]:
                return [
                    {"index": own.index, "score": own.score}
                    | ({"text": self.texts[own.index]} if self.return_text else {})
                    | ({"truncated": True} if own.truncated else {})
                    for own in ranked
                ]

        either = Annotated[Documents, Tag("documents")] | Annotated[Texts, Tag("texts")]
        self._adapter = TypeAdapter(Annotated[either, Discriminator(_which)])
        self.schema: dict[str, Any] = {"anyOf": [Documents.model_json_schema(), Texts.model_json_schema()]}

    def read(self, body: bytes) -> Any:
        """Parses a body. Raises `pydantic.ValidationError`, also for JSON that is nested too deeply."""
        return self._adapter.validate_json(body)


def _which(body: Any) -> str:
    return "texts" if isinstance(body, dict) and "texts" in body and "documents" not in body else "documents"
