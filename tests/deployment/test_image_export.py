"""Image classifiers in the predictor and in exports, which need neither PyTorch nor transformers."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
)

from hf_distill import export_model, load_predictor
from hf_distill.deployment.json_inputs import from_json, to_json
from hf_distill.deployment.parity_images import make_images
from hf_distill.deployment.predictor import predictor_of
from hf_distill.images import open_image
from tests.images import COLOURS, make_image, make_processor, make_vit


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(0)
    model = make_vit(2, initializer_range=0.3)
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def export(student):
    return export_model(student, student / "onnx", "onnx")


def images_in_all_forms(folder):
    images = [make_image(colour, seed) for seed, colour in enumerate(COLOURS)]
    images[0].save(folder / "first.png")
    written = io.BytesIO()
    images[1].save(written, "PNG")
    return images, [str(folder / "first.png"), written.getvalue(), np.array(images[2])]


def test_the_logits_are_those_of_transformers(student, tmp_path):
    images, forms = images_in_all_forms(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(student).eval()
    with torch.inference_mode():
        expected = model(**make_processor()(images, return_tensors="pt")).logits
    predictor = load_predictor(student)
    assert (predictor.head, predictor.reads, predictor.labels) == ("image classification", "image", list(COLOURS))
    np.testing.assert_allclose(predictor.logits(forms), expected, atol=1e-6)
    answers = predictor.predict([folder_image := tmp_path / "first.png", *forms[1:]], top_k=None)
    assert folder_image.exists()
    for own, logits in zip(answers, expected, strict=True):
        assert [entry["label"] for entry in own] == [
            predictor.labels[index] for index in logits.argsort(descending=True)
        ]
        assert sum(entry["score"] for entry in own) == pytest.approx(1)


def test_an_export_is_its_student(student, export, tmp_path):
    assert export.parity.texts == len(make_images())
    assert export.parity.largest_difference < 1e-5
    _, forms = images_in_all_forms(tmp_path)
    exported = load_predictor(export.folder)
    np.testing.assert_allclose(exported.logits(forms), load_predictor(student).logits(forms), atol=1e-5)
    manifest = json.loads((export.folder / "export.json").read_text())
    assert manifest["preprocessing"] == {
        "mode": "RGB",
        "resample": 2,
        "height": 16,
        "width": 16,
        "shortest_edge": None,
        "crop": None,
        "rescale": 1 / 255,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "reverse_channels": False,
    }


def test_int8(student, tmp_path):
    export = export_model(student, tmp_path / "int8", "onnx-int8", min_agreement=0.8)
    assert export.parity.agreement >= 0.8
    assert load_predictor(export.folder).predict([make_image("red")])[0]["label"] in COLOURS


def test_an_export_needs_no_transformers(student, export, tmp_path):
    make_image("red").save(tmp_path / "red.png")
    expected = load_predictor(student).predict([str(tmp_path / "red.png")])
    code = f"""
import json, sys
from hf_distill import load_predictor
print(json.dumps(load_predictor({str(export.folder)!r}).predict([{str(tmp_path / "red.png")!r}])))
assert not {{"torch", "transformers", "datasets"}} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (answer,) = json.loads(run.stdout)
    assert answer == {**expected[0], "score": pytest.approx(expected[0]["score"], abs=1e-5)}


def test_the_middle_of_images_of_all_shapes():
    """ConvNeXT keeps the aspect ratio, and reads the middle."""
    config = ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_labels=3)
    model, processor = (
        ConvNextForImageClassification(config).eval(),
        ConvNextImageProcessorPil(size={"shortest_edge": 64}),
    )
    images = [make_image("red", 0, 70, 90), make_image("green", 1, 500, 30)]
    with torch.inference_mode():
        expected = model(**processor(images, return_tensors="pt")).logits
    np.testing.assert_allclose(predictor_of(model, processor, "convnext").logits(images), expected, atol=1e-6)


def test_what_cannot_be_exported(tmp_path):
    processor = EfficientNetImageProcessorPil(size={"height": 16, "width": 16})
    with pytest.raises(ValueError, match="EfficientNetImageProcessorPil does more than resize, crop, rescale and"):
        export_model(make_vit(1), tmp_path / "export", "onnx", tokenizer=processor)
    with pytest.raises(ValueError, match="max_length=5 has no effect on models that read image: leave it out"):
        export_model(make_vit(1), tmp_path / "export", "onnx", tokenizer=make_processor(), max_length=5)


def test_bad_images(student):
    predictor = load_predictor(student)
    with pytest.raises(ValueError, match=r"images must be a list, but is one image: give \['cat\.png'\]"):
        predictor.predict("cat.png")
    with pytest.raises(ValueError, match=r"^Image 1 \(nowhere\.png\) is not a file: check the name\.$"):
        predictor.predict([make_image("red"), "nowhere.png"])
    with pytest.raises(ValueError, match=r"^Image 300 is empty: replace or remove it"):
        predictor.predict([np.array(make_image("red"))] * 300 + [b""])
    assert predictor.predict([]) == []


def test_images_in_json():
    image = make_image("red")
    np.testing.assert_array_equal(np.array(image), np.array(open_image(from_json(to_json(image)))))
    assert from_json(to_json("cat.png")) == "cat.png"
    assert from_json(json.loads(json.dumps(to_json(b"bytes")))) == b"bytes"
