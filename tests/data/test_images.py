"""Images and labels from folders, tables and data sets of the Hub, and errors for invalid ones."""

import json

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from torch.utils.data import DataLoader
from transformers import default_data_collator

from hf_distill import encode_images, load_labelled_images, load_unlabelled_images
from hf_distill.data import reading
from hf_distill.training.checkpoints.runs import data_identity
from tests.images import COLOURS, make_image, make_processor, write_images


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "photos", 6)


def files_of(folder):
    return sorted(folder.rglob("*.png"))


def file_content(image):
    return image["bytes"] if image["bytes"] is not None else open(image["path"], "rb").read()


def write_csv(folder):
    rows = [f"{file.relative_to(folder)},{file.parent.name}" for file in files_of(folder)]
    (folder / "data.csv").write_text("\n".join(["photo,colour", *rows]))
    return folder / "data.csv"


def write_json_lines(folder):
    rows = [{"photo": str(file.relative_to(folder)), "colour": file.parent.name} for file in files_of(folder)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "data.jsonl"


def columns_of(folder):
    return {
        "photo": [file.read_bytes() for file in files_of(folder)],
        "colour": [file.parent.name for file in files_of(folder)],
    }


def write_bytes(folder):
    Dataset.from_dict(columns_of(folder)).to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def write_image_feature(folder):
    features = Features({"photo": Image(), "colour": Value("string")})
    Dataset.from_dict(columns_of(folder), features).to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def write_image_names(folder):
    photos = [{"bytes": None, "path": str(file)} for file in files_of(folder)]
    Dataset.from_dict({**columns_of(folder), "photo": photos}).to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


WRITERS = [write_csv, write_json_lines, write_bytes, write_image_feature, write_image_names]


def test_a_folder_per_class(folder):
    (folder / ".hidden").mkdir()
    make_image("red").save(folder / ".hidden" / "no.png")
    (folder / "red" / "notes.txt").write_text("no image")
    rows, names = load_labelled_images(folder)
    assert names == ["blue", "green", "red"]
    assert rows.column_names == ["image", "sha256", "labels"]
    assert [image["path"] for image in rows["image"]] == [str(file) for file in files_of(folder)[1:]]
    assert rows["labels"] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("write", WRITERS)
def test_a_table(folder, write):
    rows, names = load_labelled_images(write(folder), "photo", "colour", label_names=["red", "green", "blue"])
    expected, _ = load_labelled_images(folder)
    assert names == ["red", "green", "blue"]
    assert rows["labels"] == [2, 2, 1, 1, 0, 0]
    assert rows["sha256"] == expected["sha256"]
    assert rows.features == expected.features
    assert [file_content(image) for image in rows["image"]] == [file.read_bytes() for file in files_of(folder)]
    unlabelled = load_unlabelled_images(write(folder), "photo")
    assert unlabelled["sha256"] == expected["sha256"]
    assert set(unlabelled["labels"]) == {-100}
    assert unlabelled.features == expected.features


def test_a_dataset_of_the_hub(folder, monkeypatch):
    features = Features({"photo": Image(), "colour": ClassLabel(names=list(COLOURS))})
    on_hub = Dataset.from_dict(columns_of(folder), features)
    monkeypatch.setattr(reading, "load_dataset", lambda name, *args, **options: on_hub)
    rows, names = load_labelled_images("user/colours", "photo", "colour", split="test")
    assert (names, rows["labels"]) == (list(COLOURS), [0, 0, 1, 1, 2, 2])
    assert rows["sha256"] == load_labelled_images(folder)[0]["sha256"]


def test_unlabelled_images(folder):
    rows = load_unlabelled_images(folder)
    assert len(rows) == 6
    several = load_unlabelled_images(folder / "red", problem_type="multi_label_classification", num_classes=2)
    assert several["labels"] == [[-100.0, -100.0]] * 2


def test_images_are_prepared_when_their_row_is_read(folder):
    processor = make_processor()
    rows = encode_images(load_labelled_images(folder)[0], processor)
    (expected,) = processor([make_image("red", 2, 18, 28)], return_tensors="np")["pixel_values"]
    assert rows.column_names == ["pixel_values", "labels"]
    np.testing.assert_array_equal(rows[4]["pixel_values"], expected)
    batches = [list(DataLoader(rows, 4, collate_fn=default_data_collator, num_workers=workers)) for workers in (0, 2)]
    for own, of_workers in zip(*batches, strict=True):
        assert own["pixel_values"].shape[1:] == (3, 16, 16)
        np.testing.assert_array_equal(own["pixel_values"], of_workers["pixel_values"])


def test_what_is_the_same_data(folder):
    """The content of the files counts, not only their names."""
    first = load_labelled_images(folder)[0]
    again = load_labelled_images(folder)[0]
    assert data_identity("photos", first) == data_identity("photos", again)
    encoded = encode_images(first, make_processor())
    assert encoded._fingerprint == encode_images(again, make_processor())._fingerprint
    make_image("red", seed=99).save(files_of(folder)[-1])
    changed = load_labelled_images(folder)[0]
    assert data_identity("photos", first) != data_identity("photos", changed)
    assert encoded._fingerprint != encode_images(changed, make_processor())._fingerprint
    of_bytes = load_labelled_images(write_bytes(folder), "photo", "colour")[0]
    assert data_identity("photos", of_bytes) == data_identity("photos", of_bytes)


def test_images_that_cannot_be_read(folder):
    files = files_of(folder)
    content = files[0].read_bytes()
    files[0].write_bytes(content[: len(content) // 2])
    files[3].write_bytes(b"")
    files[5].write_bytes(b"text")
    with pytest.raises(ValueError, match="photos has 3 images that cannot be read: ") as caught:
        load_labelled_images(folder)
    said = str(caught.value)
    assert f"{files[0]} is damaged or truncated (" in said
    assert f"{files[3]} is empty: replace or remove it" in said
    assert f"{files[5]} is not an image of a format such as PNG, JPEG or WebP: replace or remove it" in said
    with pytest.raises(ValueError, match="3 images"):
        load_unlabelled_images(folder)


def test_rows_that_cannot_be_read(folder):
    table = write_csv(folder)
    files_of(folder)[1].unlink()
    table.write_text(table.read_text() + "\n,red\n")
    with pytest.raises(ValueError, match="has 2 images that cannot be read: row 2") as caught:
        load_labelled_images(table, "photo", "colour")
    assert "does not exist: check the file name, which is relative to the folder of the table" in str(caught.value)
    assert "row 7 has no image: add it or remove the row" in str(caught.value)


def test_many_bad_images(tmp_path):
    folder = write_images(tmp_path / "photos", 9)
    for file in files_of(folder):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"has 9 images that cannot be read: .*, and 4 more\.$"):
        load_labelled_images(folder)


def test_sources_without_images(tmp_path, folder):
    with pytest.raises(ValueError, match=r"File or folder not found: .*nowhere"):
        load_labelled_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="red has image files, but no subfolders: give one subfolder of image files"):
        load_labelled_images(folder / "red")
    (tmp_path / "one").mkdir()
    (folder / "red").rename(tmp_path / "one" / "red")
    with pytest.raises(ValueError, match="has only one class, 'red'"):
        load_labelled_images(tmp_path / "one")
    table = write_csv(folder)
    with pytest.raises(ValueError, match="has no column 'image'"):
        load_labelled_images(table, label_column="colour")
    Dataset.from_dict({"photo": [1, 2], "colour": ["a", "b"]}).to_parquet(tmp_path / "numbers.parquet")
    with pytest.raises(
        ValueError, match=r"column .photo. has Value.*but must have names of files, bytes of files or an"
    ):
        load_labelled_images(tmp_path / "numbers.parquet", "photo", "colour")


def test_file_names_on_the_hub(folder, monkeypatch):
    on_hub = Dataset.from_dict({"photo": ["a.png"], "colour": ["red"]})
    monkeypatch.setattr(reading, "load_dataset", lambda name, *args, **options: on_hub)
    with pytest.raises(ValueError, match="has file names, but a dataset on the Hub needs an Image column or bytes"):
        load_labelled_images("user/colours", "photo", "colour")
