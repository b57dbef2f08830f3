"""Request bodies of `/predict` for a model that reads files: the file itself, or files in base64 in JSON."""

import base64
import dataclasses
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, TypeAdapter

from hf_distill.serving.limits import Limits
from hf_distill.serving.schemas import MAX_TOP_K, Body, whole

NUM_SCORES = "Number of scores to return for each file."


class FileBodies:
    """The request bodies for a model that reads files of a kind, such as images.

    A body is one file, with a Content-Type such as `image/png`; or JSON, `{"image": ...}` or `{"images": [...]}`, with
    the content of the files in base64.

    Args:
        limits: the limits.
        kind: what the files are, such as `"image"`: the name in JSON, and the first part of the Content-Type.

    Attributes:
        limits: the limits, with `max_file_body` as the largest body.
        kind: what the files are.
        schema: JSON schema for OpenAPI.
    """

    def __init__(self, limits: Limits, kind: str):
        self.limits = dataclasses.replace(limits, max_body=limits.max_file_body)
        self.kind = kind
        one, several = _of_files(limits, kind)
        either = Annotated[one, Tag("one")] | Annotated[several, Tag("several")]  # type: ignore[valid-type]
        self._adapter = TypeAdapter(Annotated[either, Discriminator(self._which)])
        self.schema: dict[str, Any] = {"oneOf": [one.model_json_schema(), several.model_json_schema()]}

    @property
    def example(self) -> str:
        """A Content-Type of such files."""
        return {"image": "image/png", "audio": "audio/wav"}[self.kind]

    def takes(self, content_type: str) -> bool:
        """Whether a body of this Content-Type is a file."""
        return content_type.startswith(f"{self.kind}/")

    def read(self, body: bytes) -> Body:
        """Parses a body of JSON. Raises `pydantic.ValidationError`, also for JSON that is nested too deeply."""
        return self._adapter.validate_json(body)

    def read_file(self, body: bytes, top_k: str | None) -> Body:
        """Takes a body that is a file, with the number of scores of the query string.

        Raises:
            pydantic.ValidationError: if `top_k` is not a number in its limits.
        """
        given: dict[str, Any] = {self.kind: base64.b64encode(body).decode()}
        if top_k is not None:
            given["top_k"] = int(top_k) if top_k.isdecimal() else top_k
        return self._adapter.validate_python(given)

    def _which(self, body: Any) -> str:
        return "several" if isinstance(body, dict) and f"{self.kind}s" in body else "one"


def _of_files(limits: Limits, kind: str) -> tuple[type[Body], type[Body]]:
    a_file = Annotated[
        str,
        Field(description="The content of a file in base64.", json_schema_extra={"format": "byte"}),
        AfterValidator(_check_base64),
    ]
    some_files = Annotated[list[a_file], Field(min_length=1, max_length=limits.max_texts)]
    a_number = Annotated[int, Field(ge=1, le=MAX_TOP_K, description=NUM_SCORES), BeforeValidator(whole)]

    class OneFile(Body):
        file: a_file = Field(alias=kind)
        top_k: a_number = 1
        is_one = True

        @property
        def inputs(self) -> list[dict[str, str]]:
            return [{"base64": self.file}]

    class SeveralFiles(Body):
        files: some_files = Field(alias=f"{kind}s")
        top_k: a_number = 1

        @property
        def inputs(self) -> list[dict[str, str]]:
            return [{"base64": file} for file in self.files]

    return OneFile, SeveralFiles


def _check_base64(content: str) -> str:
    try:
        base64.b64decode(content, validate=True)
    except ValueError as error:
        raise ValueError(f"is not base64: {error}") from None
    return content
