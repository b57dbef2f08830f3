"""A service of an image model: files as they are, and files in base64 in JSON."""

import base64
import io
import json

import pytest
import torch

from hf_distill import load_predictor
from tests.images import COLOURS, make_image, make_processor, make_vit
from tests.serving.running import RunningService


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("images") / "model"
    make_vit(1, initializer_range=0.3).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def service(model):
    options = ("--workers", "1", "--max-file-body", "20000", "--max-texts", "3")
    with RunningService(model.parent, model, *options) as running:
        yield running


def content_of(colour, format="PNG"):
    written = io.BytesIO()
    make_image(colour).save(written, format)
    return written.getvalue()


def in_base64(content):
    return base64.b64encode(content).decode()


def test_the_same_answers_for_files_and_json(service, model):
    contents = [content_of(colour) for colour in COLOURS]
    expected = load_predictor(model).predict(contents)
    assert [service.post(own, **{"content-type": "image/png"}).json for own in contents] == expected
    assert service.post({"images": [in_base64(own) for own in contents]}).json == expected
    assert service.post({"image": in_base64(contents[0])}).json == expected[0]
    of_jpeg = service.post(content_of("red", "JPEG"), **{"content-type": "image/jpeg; q=1"}).json
    assert of_jpeg == load_predictor(model).predict([content_of("red", "JPEG")])[0]


def test_top_k(service):
    answer = service.post(content_of("red"), "/predict?top_k=2", **{"content-type": "image/png"}).json
    assert len(answer["scores"]) == 2
    assert service.post({"image": in_base64(content_of("red")), "top_k": 2}).json == answer
    refused = service.post(content_of("red"), "/predict?top_k=none", **{"content-type": "image/png"})
    assert (refused.status, "top_k" in refused.json["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "detail"),
    [
        (b"no image", "image/png", 422, "Image 0: is not an image of a format such as PNG, JPEG or WebP"),
        (b"", "image/png", 422, "Image 0: is empty"),
        (content_of("red")[:300], "image/png", 422, "Image 0: is damaged or truncated"),
        (bytes(20001), "image/png", 413, "The body is larger than 20,000 bytes"),
        (content_of("red"), "text/plain", 415, "must be application/json or image/..., such as image/png"),
        ({"image": "nö"}, None, 422, "is not base64"),
        ({"image": "/etc/passwd.png"}, None, 422, "is not base64"),
        ({"images": [in_base64(b"text")]}, None, 422, "Image 0: is not an image"),
        ({"images": [in_base64(b"text")] * 4}, None, 422, "images: List should have at most 3 items"),
        ({"text": "a film"}, None, 422, "image: Field required"),
    ],
)
def test_bad_requests(service, body, content_type, status, detail):
    options = {} if content_type is None else {"content-type": content_type}
    answer = service.post(body, **options)
    assert answer.status == status
    assert detail in answer.json["detail"]


def test_openapi_and_models(service):
    (described,) = json.loads(service.get("/openapi.json").body)["paths"]["/predict"].values()
    assert set(described["requestBody"]["content"]) == {"application/json", "image/*"}
    assert [own["name"] for own in described["parameters"]] == ["top_k"]
    assert service.get("/models").json["student"]["reads"] == "image"
