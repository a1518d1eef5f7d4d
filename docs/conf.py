# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the documents: ``make docs``."""

from __future__ import annotations

import contextlib
import io
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import torchcow
from torchcow_cli import SCRIPT, main

project = "torchcow"
author = "the torchcow developers"
version = release = torchcow.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
myst_heading_anchors = 4
exclude_patterns = ["charts"]

html_theme = "furo"
html_title = f"torchcow {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wrap.css"]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_use_unqualified_type_names = True
napoleon_use_ivar = True
autosummary_generate = False

# What is not our own cannot be looked up without a network. "Read" and "Structure" are names of types in signatures.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|collections|os|pathlib|datetime|traceback|typing)\..*"),
    ("py:class", r"torchcow\..*\.T|Structure|Node|Read"),
]
linkcheck_timeout = 20


class CommandHelp(SphinxDirective):
    """What a command says about itself: ``{command-help} registry ls``."""

    has_content = False
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Ask the command."""
        command = self.arguments[0] if self.arguments else ""
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            main([*command.split(), "--help"])
        text = re.sub(r"\n{2,}", "\n\n", output.getvalue()).strip()
        return [nodes.literal_block(text, f"$ {SCRIPT} {command} --help".replace("  ", " ") + f"\n{text}")]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_directive("command-help", CommandHelp)
