"""Images from files, bytes and arrays, and the same pixels as from the image processors of transformers."""

import io

import numpy as np
import pytest
import transformers
from PIL import Image

from hf_distill import images
from hf_distill.data.image_processors import ProcessorReader, check_channels, image_reader, preprocessing_of
from hf_distill.images import Preprocessing, open_image
from tests.images import make_image, make_processor


def as_bytes(image, format="PNG", **options):
    written = io.BytesIO()
    image.save(written, format, **options)
    return written.getvalue()


def test_an_image_in_every_form(tmp_path):
    image = make_image("red")
    image.save(tmp_path / "red.png")
    expected = np.array(image)
    for form in (tmp_path / "red.png", str(tmp_path / "red.png"), as_bytes(image), image, expected):
        np.testing.assert_array_equal(np.array(open_image(form)), expected)


def test_modes():
    grey = make_image("red").convert("L")
    for image in (grey, grey.convert("RGBA"), grey.convert("P"), grey.convert("1"), grey.convert("LA")):
        assert open_image(image).mode == "RGB"
        assert open_image(image, "L").mode == "L"
    np.testing.assert_array_equal(np.array(open_image(np.array(grey), "L")), np.array(grey))


def test_an_image_is_turned_upright():
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    image = open_image(as_bytes(make_image("red"), "JPEG", exif=exif))
    assert (image.width, image.height) == (20, 28)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "is empty: replace or remove it"),
        (b"no image at all", "is not an image of a format such as PNG, JPEG or WebP"),
        (as_bytes(make_image("red"))[:400], r"is damaged or truncated \(.*\): replace or remove it"),
        (as_bytes(make_image("red"), "JPEG")[:800], r"is damaged or truncated \(.*\): replace or remove it"),
        ("nowhere.png", "is not a file: check the name"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "has I;16 pixels, with more than 8 bits"),
        (np.zeros((4, 4, 4), np.uint8), r"is a uint8 array \[4, 4, 4\], but must be uint8 \[height, width\]"),
        (np.zeros((4, 4)), r"is a float64 array \[4, 4\], but must be uint8"),
        (3, "must be a file name, bytes, an image of Pillow or a NumPy array, but is int"),
    ],
)
def test_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        open_image(image)


def test_checking_an_image_takes_all_of_it():
    content = as_bytes(make_image("red", 0, 400, 500), "JPEG")
    images.check_image(content)
    for end in (100, 1000, len(content) // 2, len(content) - 100):
        with pytest.raises(ValueError, match=r"is damaged or truncated|is not an image"):
            images.check_image(content[:end])


def test_a_huge_image(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 500)
    with pytest.raises(ValueError, match="has 28 x 20 pixels, more than the 500 that are decoded: resize it"):
        open_image(as_bytes(make_image("red")))
    with pytest.raises(ValueError, match="has 28 x 20 pixels"):
        images.check_image(as_bytes(make_image("red"), "JPEG"))


PROCESSORS = [
    *("ViT", "DeiT", "Bit", "CLIP", "Siglip", "ConvNext", "Pvt", "MobileNetV1", "MobileNetV2", "Beit", "Segformer"),
    *("MobileViT", "Levit"),
]
OPTIONS = [{}, {"size": {"shortest_edge": 224}}, {"do_normalize": False, "resample": 0}]


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_same_pixels_as_its_processor(name):
    """Of images that `preprocessing_of` itself does not try."""
    of_name = getattr(transformers, f"{name}ImageProcessorPil")
    num_same = 0
    for options in OPTIONS:
        try:
            processor = of_name(**options)
            preprocessing = preprocessing_of(processor)
        except ValueError:
            continue  # a size that this processor does not take, or that leaves images with different sizes
        num_same += 1
        for seed, shape in enumerate([(230, 300), (31, 200)]):
            image = make_image("green", seed, *shape)
            (expected,) = processor([image], return_tensors="np")["pixel_values"]
            values = preprocessing.values(preprocessing.pixels(image))
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, expected)
    assert num_same >= 2


def test_one_channel():
    processor = transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.25])
    preprocessing = preprocessing_of(processor)
    values = preprocessing.values(preprocessing.pixels(open_image(make_image("red"), "L")))
    assert values.shape == (1, 8, 8)
    check_channels(processor, transformers.ViTConfig(num_channels=1))
    with pytest.raises(ValueError, match="The model reads images with 3 channels, but its ViTImageProcessorPil"):
        check_channels(processor, transformers.ViTConfig())


def test_a_batch_is_its_images():
    preprocessing = preprocessing_of(make_processor())
    pixels = [preprocessing.pixels(make_image(colour)) for colour in ("red", "green")]
    one_by_one = np.stack([preprocessing.values(own) for own in pixels])
    np.testing.assert_array_equal(preprocessing.values(np.stack(pixels)), one_by_one)


def test_other_processors_prepare_images_themselves():
    processor = transformers.EfficientNetImageProcessorPil()
    with pytest.raises(ValueError, match="EfficientNetImageProcessorPil does more than resize, crop, rescale and norm"):
        preprocessing_of(processor)
    reader = image_reader(processor)
    assert isinstance(reader, ProcessorReader)
    (expected,) = processor([make_image("red")], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(reader.values(reader.pixels(make_image("red"))), expected)


def test_images_of_different_sizes():
    with pytest.raises(ValueError, match="Images would keep different sizes"):
        Preprocessing(shortest_edge=224)
