"""How the API reference reads our docstrings: an extension of griffe, which mkdocstrings runs."""

import ast
import re

import griffe


class Docstrings(griffe.Extension):
    """The help text of a dataclass field is its documentation, and a section `Example:` holds code."""

    def on_attribute_instance(self, *, node, attr, **kwargs) -> None:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call) and attr.docstring is None:
            options = {keyword.arg: keyword.value for keyword in node.value.keywords}
            if "metadata" in options:  # as HfArgumentParser reads it
                attr.docstring = griffe.Docstring(ast.literal_eval(options["metadata"])["help"], parent=attr)
                attr.value = ast.unparse(options["default"]) if "default" in options else None

    def on_object(self, *, obj, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
