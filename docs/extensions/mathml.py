"""Equations as MathML, which browsers lay out by themselves: no script, no download."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.errors import ExtensionError


def mathml(latex, display):
    """Return the MathML of some LaTeX; display is 'inline' or 'block'."""
    latex = latex.replace('{aligned}', '{align*}')  # the form that the converter knows
    try:
        found = convert(latex, display=display)
    except Exception as error:
        raise ExtensionError(f'cannot lay out {latex!r}: {error!r}') from error
    if '<mi>&</mi>' in found or '>\\' in found:
        raise ExtensionError(f'cannot lay out {latex!r}: a command is unknown')
    return found


def inline(translator, node):
    """Write an equation of a line."""
    translator.body.append(mathml(node.astext(), 'inline'))
    raise nodes.SkipNode


def block(translator, node):
    """Write an equation of its own line, in a box that can be scrolled."""
    found = mathml(node.astext(), 'block')
    translator.body.append(f'<div class="equation">{found}</div>\n')
    raise nodes.SkipNode


def setup(app):
    """Tell Sphinx."""
    app.add_html_math_renderer('mathml', (inline, None), (block, None))
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
