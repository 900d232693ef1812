"""Settings of the documentation site: `make docs` builds it into build/site.

The source folder is the repository, so that pages that are read on a code host (README, docs, notebooks, benchmarks)
are pages of the site as they are, with the same relative links. `MECHVIS_NOTEBOOKS` says what becomes of notebooks:
`off` (default) shows text and code, `cache` runs those that changed since they last ran, and shows what they print.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import mechvis  # noqa: E402

project = "mechvis"
author = "The mechvis authors"
copyright = "The mechvis authors, Apache-2.0"
release = version = mechvis.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "api_pages", "side_by_side"]
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**", "notebooks/*.md", "benchmarks/*.md"]
include_patterns += ["tests/SKIPS.md"]
exclude_patterns = ["build/**", "**/.venv*/**"]

# Pages.
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = os.environ.get("MECHVIS_NOTEBOOKS", "off")
nb_execution_cache_path = str(HERE.parent / "build" / "notebook-cache")
nb_execution_timeout = 300
nb_execution_in_temp = True  # what notebooks write does not lie among them
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars

# Docstrings.
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 100
add_module_names = False
toc_object_entries = False

html_theme = "furo"
html_title = "mechvis"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["site_style"]
html_css_files = ["site.css"]
html_extra_path = ["site_root"]  # the address of the folder leads to the first page
