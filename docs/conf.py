"""The site: `sphinx-build -W docs site`. Nothing is downloaded, then or when read."""

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / 'extensions')]

import ddetr_np  # noqa: E402

project = 'ddetr-np'
author = 'The ddetr-np developers'
copyright = author
version = release = ddetr_np.__version__

extensions = [
    'sphinx.ext.autodoc',
    'sphinx.ext.autosummary',
    'sphinx.ext.viewcode',
    'numpydoc',
    'myst_nb',
    'mathml',
    'docstrings',
    'pages',
]
templates_path = ['_templates']
exclude_patterns = ['extensions', '_templates', 'jupyter_execute']
default_role = 'py:obj'

# Walkthroughs stand beside the package, and Sphinx reads one folder only.
walkthroughs = HERE.parent / 'notebooks'
if walkthroughs.is_dir():
    shutil.copytree(
        walkthroughs,
        HERE / 'walkthroughs',
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns('*.py', '.*', '__pycache__'),
    )
    exclude_patterns.append('walkthroughs/README.md')
    # their links are the repository's
    for page in (HERE / 'walkthroughs').glob('*.md'):
        text = page.read_text(encoding='utf-8')
        page.write_text(text.replace('](../docs/', '](../'), encoding='utf-8')
# else figures would be drawn for no page
os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline'
nb_execution_mode = 'auto'  # runs those that come without outputs
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True
myst_enable_extensions = [
    'dollarmath', 'amsmath', 'colon_fence', 'deflist', 'attrs_block',
]
myst_heading_anchors = 3

add_module_names = False
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True, 'ignore-module-all': True}
autodoc_typehints = 'none'  # what there is of them says less than the docstring
autosummary_ignore_module_all = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

MARK = '_static/mark.svg'
html_title = 'ddetr-np'
html_theme = 'pydata_sphinx_theme'
html_static_path = ['_static']
html_favicon = MARK
html_context = {'default_mode': 'auto'}  # light or dark, as the reader's system
html_sidebars = {  # pages with none beside them
    name: [] for name in ('index', 'install', 'equation-map', 'contributing')
}
html_css_files = ['site.css']
html_show_sourcelink = False
html_math_renderer = 'mathml'
html_theme_options = {
    'navbar_align': 'left',
    'header_links_before_dropdown': 6,
    'logo': {'text': 'ddetr-np', 'image_light': MARK, 'image_dark': MARK},
    'show_prev_next': False,
    'show_toc_level': 2,
    'secondary_sidebar_items': ['page-toc'],
    'footer_start': ['copyright'],
    'footer_end': [],
    'pygments_light_style': 'tango',
    'pygments_dark_style': 'github-dark',
}
