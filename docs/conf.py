"""Sphinx's settings: plain Markdown in, one static site out (`make docs`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from evomerge import __version__

project = "evomerge"
author = "the evomerge contributors"
version = release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "config_reference",
    "docstrings",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"evomerge {release}"
myst_heading_anchors = 4
default_role = "code"  # `word` in a docstring is code, as in Markdown
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Class attributes", "params_style")]
toc_object_entries_show_parents = "hide"
