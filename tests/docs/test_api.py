"""The API reference has every public name, and every public name has a docstring."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import hf_distill
import hf_distill.serving

PAGES = sorted((Path(__file__).parents[2] / "docs" / "api").glob("*.md"))
DOCUMENTED = [name for page in PAGES for name in re.findall(r"^::: (\S+)", page.read_text(), flags=re.MULTILINE)]
PUBLIC = [
    *(f"hf_distill.{name}" for name in hf_distill.__all__),
    *(f"hf_distill.serving.{name}" for name in hf_distill.serving.__all__),
]


def test_every_public_name_is_on_one_page():
    assert sorted(DOCUMENTED) == sorted(PUBLIC)


def test_the_overview_names_them():
    overview = Path(PAGES[0].parent, "index.md").read_text()
    plots = ", the three plots" in overview
    names = [name.rpartition(".")[2] for name in PUBLIC]
    assert [name for name in names if f"`{name}`" not in overview and not (plots and name.startswith("plot_"))] == []


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.endswith("__version__")])
def test_a_list_of_arguments_has_all(name):
    module, _, own = name.rpartition(".")
    public = getattr(hf_distill if module == "hf_distill" else hf_distill.serving, own)
    doc = inspect.getdoc(public)
    assert doc
    if not re.search("^(Args|Attributes):", doc, flags=re.MULTILINE):
        return  # its first line says it all
    if dataclasses.is_dataclass(public):  # whose fields have a help text, or a line of their own
        own_fields = [field for field in dataclasses.fields(public) if field.name in inspect.get_annotations(public)]
        documented = {field.name for field in own_fields if field.metadata.get("help")}
        arguments = {field.name for field in own_fields if not field.name.startswith("_")} - documented
    else:
        arguments = set(inspect.signature(public).parameters) - {"args", "kwargs"}
    missing = [argument for argument in arguments if not re.search(rf"^ *\**{argument}\b.*:", doc, flags=re.MULTILINE)]
    assert missing == []
