"""How Sphinx builds the documentation: ``make docs``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import jupytext
from docutils import nodes
from latex2mathml.converter import convert

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tinygrad_rnn  # noqa: E402

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of the pages' code, where times are shown

project = "tinygrad_rnn"
author = "The tinygrad_rnn authors"
copyright = author
version = release = tinygrad_rnn.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_notebooks"]
default_role = "py:obj"

html_theme = "furo"
html_title = "tinygrad_rnn"
html_static_path = ["_static"]
html_css_files = ["style.css"]

# Every code cell is run when its page is made; one that raises fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they are in the signature
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True  # an attribute that is described in a class and defined in it is one entry
html_math_renderer = "mathml"  # which browsers show without a script from elsewhere


def inline_math(writer, node):
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(writer, node):
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def as_notebook(app, page, source):
    """Make a notebook of each chapter and how-to page that has code to run, and offer it below the title."""
    if not page.startswith(("course/", "howto/")) or not source[0].startswith("---\nfile_format: mystnb"):
        return
    path = HERE / "_notebooks" / f"{Path(page).name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    notebook = jupytext.reads(source[0], fmt="md:myst")
    for cell in notebook.cells:
        if "hide-cell" in cell.metadata.get("tags", ()):
            cell.metadata["jupyter"] = {"source_hidden": True}
    jupytext.write(notebook, path)
    head, title, rest = source[0].partition("\n# ")
    first, _, rest = rest.partition("\n")
    source[0] = f"{head}{title}{first}\n\n{{download}}`Open as a notebook </_notebooks/{path.name}>`\n{rest}"


def in_words(app, what, name, thing, options, lines):
    """Make of docstrings what Napoleon takes as it is meant: several attributes in a line, results without a type."""
    made, section, i = [], "", 0
    while i < len(lines):
        line = lines[i]
        if i + 1 < len(lines) and re.fullmatch("-{3,}", lines[i + 1]):
            section = line
            if section in ("Returns", "Yields"):
                end = next((j for j in range(i + 2, len(lines) - 1) if re.fullmatch("-{3,}", lines[j + 1])), len(lines))
                body = lines[i + 2 : end]
                if not any(text.startswith(" ") for text in body):
                    first, *rest = body
                    # Two empty lines end the section before.
                    made += ["", "", f":{section.lower()}: {first}", *[text and f"    {text}" for text in rest], ""]
                    i = end
                    continue
        elif section == "Attributes" and re.fullmatch(r"(\w+, )+\w+", line):
            end = next((j for j in range(i + 1, len(lines)) if not lines[j].startswith(" ")), len(lines))
            for attribute in line.split(", "):
                made += [attribute, *lines[i + 1 : end]]
            i = end
            continue
        made.append(line)
        i += 1
    lines[:] = made


def setup(app):
    app.connect("autodoc-process-docstring", in_words, priority=400)  # before Napoleon
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("source-read", as_notebook)
