"""One HTML file to walk through what a model looks at: no server, no network.

`pack` puts the numbers together; `page.html`, `explorer.css` and `explorer.js` show
them; d3 (https://d3js.org, its licence beside it) draws.
"""

import json
from pathlib import Path

from ...files import replacing
from .packing import pack

__all__ = ['make_page', 'pack', 'save_page']

FOLDER = Path(__file__).parent


def make_page(packed):
    """Return the page, text, of what `pack` made.

    Parameters
    ----------
    packed : dict
        From `pack`.

    Returns
    -------
    str
        HTML with the style, the script, d3 and the numbers inside.
    """
    page = (FOLDER / 'page.html').read_text(encoding='utf-8')
    parts = {
        'style': 'explorer.css',
        'd3': 'd3.min.js',
        'script': 'explorer.js',
    }
    for name, file in parts.items():
        page = page.replace(f'{{{name}}}', (FOLDER / file).read_text(encoding='utf-8'))
    # inside a script element only this could end it
    return page.replace('{data}', json.dumps(packed).replace('</', '<\\/'))


def save_page(path, packed):
    """Write the page, all or nothing.

    Parameters
    ----------
    path : path
        Its folder must exist.
    packed : dict
        From `pack`.
    """
    with replacing(path) as part:
        Path(part).write_text(make_page(packed), encoding='utf-8')
