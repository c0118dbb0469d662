"""Sphinx configuration of the documentation: `make docs`."""

import os
import re
import sys
from pathlib import Path

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from sphinx.application import Sphinx

from torchgeo_explora import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = 'torchgeo_explora'
copyright = 'the authors of torchgeo_explora'
release = version = __version__

extensions = [
    'configurations',
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
    'sphinx_design',
]
# Dashes only: quotes in docstrings are code.
smartquotes_action = 'D'
toc_object_entries_show_parents = 'hide'

# Pages and the tutorial are Markdown (MyST).
myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 3

# The tutorial runs in each build.
nb_execution_mode = 'force'
# It takes a minute; a busy machine may need many times that.
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
nb_merge_streams = True
# Progress bars and downloads have no place in it.
os.environ |= {'TQDM_DISABLE': '1', 'HF_HUB_OFFLINE': '1'}

# Docstrings have Google's sections, and single backticks for code.
default_role = 'code'
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autoclass_content = 'both'
autodoc_class_signature = 'mixed'
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False

# A link to a public name, `torchgeo_explora.adapt.merged`, has to lead somewhere. Other
# libraries are not looked up: the build needs no network.
nitpicky = True
nitpick_ignore_regex = [(r'py:.*', r'(?!torchgeo_explora\.\w+\.\w+$).*')]

html_theme = 'furo'
html_title = 'torchgeo_explora'
html_static_path = ['static']
html_css_files = ['site.css']
html_show_copyright = False


def escape_markdown(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keep what is plain text in Markdown from meaning something else.

    Without backticks `global_` would be a link, and a first `B.` would be a list.
    """
    for number, line in enumerate(lines):
        parts = re.split(r'(`+[^`]*`+\w?)', line)
        parts[::2] = [re.sub(r'(\w)_(?!\w)', r'\1\\_', part) for part in parts[::2]]
        text = ''.join(parts)
        lines[number] = re.sub(
            r'^((?:\s*:[^:]+:)?\s*)([A-Za-z]\.)(?!\S)', r'\1\\\2', text
        )


def skip_hooks(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out methods that Lightning calls, and a reader does not."""
    package = (getattr(obj, '__module__', None) or '').split('.')[1:2]
    hosts = {
        'tasks': LightningModule,
        'callbacks': Callback,
        'datamodules': LightningDataModule,
    }
    hook = bool(package) and hasattr(hosts.get(package[0]), name)
    return True if hook and name not in ('__init__', 'forward') else None


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.connect('autodoc-process-docstring', escape_markdown)
    app.connect('autodoc-skip-member', skip_hooks)
