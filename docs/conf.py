"""Sphinx: ``sphinx-build -W --keep-going -n docs build/docs``. The pages of the functions are written by pages.py."""

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import pages  # noqa: E402
from docutils import nodes  # noqa: E402
from sphinx import addnodes  # noqa: E402

import fastkl  # noqa: E402

project = "fastkl"
release = version = fastkl.build_info()["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]

# `entropy` in a docstring is a link where it names something public, and emphasis where it names a parameter.
default_role = "autolink"
nitpick_ignore_regex = [("py:obj", r"(?!fastkl\.).*")]  # parameters named like a module; other libraries' classes
# Types stand in the list of parameters, where numpydoc puts them.
autodoc_typehints = "none"
maximum_signature_line_length = 88
numpydoc_show_class_members = False
autosummary_generate = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "fastkl"
html_static_path = ["static"]
html_css_files = ["fastkl.css"]
html_copy_source = False
html_show_copyright = False


def escape_initials(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep "C. E. Shannon" at the start of a reference from being the third item of a list."""
    lines[:] = [re.sub(r"^(?=[A-Z]\. )", r"\\", line) for line in lines]


def link_names(app: Any, doctree: nodes.document) -> None:
    """Let the name of a function, or a call of it, in a page's text lead to the function."""
    public = set(pages.functions())
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removeprefix("fk.").split("(")[0]
        page = f"functions/{name}" if name in public else None
        linked = isinstance(literal.parent, (nodes.reference, addnodes.pending_xref, nodes.title))
        if page is None or linked or app.env.docname == page:
            continue
        target = {"refdomain": "py", "reftype": "obj", "reftarget": f"fastkl.{name}", "refdoc": app.env.docname}
        literal.replace_self(addnodes.pending_xref("", literal.deepcopy(), **target))


def setup(app: Any) -> None:
    """Have the pages of the functions written before Sphinx looks for pages."""
    app.connect("builder-inited", lambda app: pages.write_pages(Path(app.srcdir) / "functions"))
    app.connect("autodoc-process-docstring", escape_initials, priority=400)  # before numpydoc
    app.connect("doctree-read", link_names)
