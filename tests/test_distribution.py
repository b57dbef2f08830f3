"""What is in the wheel and the source archive, and what they say of themselves."""

import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import yaml

from hf_distill.version import __version__

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The files that git tracks, so that nothing of the working folder can slip into an archive."""
    folder = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.rstrip("\0").split("\0"):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def built(checkout: Path, kind: str) -> Path:
    command = [sys.executable, "-c", BUILD.format(kind=kind), "dist"]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    [archive] = (checkout / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return archive


def test_the_wheel_has_the_package_with_its_data_files_and_nothing_else(checkout):
    with zipfile.ZipFile(built(checkout, "wheel")) as wheel:
        names = set(wheel.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        headers = HeaderParser().parsestr(wheel.read(metadata).decode())
    information = {name for name in names if name.startswith(f"hf_distill-{__version__}.dist-info/")}
    package = {path.relative_to(checkout).as_posix() for path in (checkout / "hf_distill").rglob("*") if path.is_file()}
    assert names - information == package
    assert {"hf_distill/py.typed", "hf_distill/__init__.pyi", "hf_distill/serving/page.html"} <= package
    assert headers["Version"] == __version__
    assert headers["License"] == "Apache-2.0"
    assert headers["Description-Content-Type"] == "text/markdown"


def test_the_source_archive_builds_the_same_wheel(checkout, tmp_path):
    shutil.unpack_archive(built(checkout, "sdist"), tmp_path)  # tarfile's filter is not in every Python 3.11
    [unpacked] = tmp_path.iterdir()
    with zipfile.ZipFile(built(checkout, "wheel")) as first, zipfile.ZipFile(built(unpacked, "wheel")) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


def test_the_citation_has_the_version_and_the_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (__version__, "Apache-2.0")


def test_the_workflows_call_targets_that_the_makefile_has():
    makefile = (ROOT / "Makefile").read_text()
    called = set()
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(file.read_text())["jobs"].values():
            runs = [step["run"].split() for step in job["steps"] if "run" in step]
            called |= {words[1] for words in runs if words[0] == "make"}
    assert called == {"test", "dist", "docs"}
    assert all(f"\n{target}:" in makefile for target in called)
