"""Formulas as inline SVG drawn by matplotlib: no script, no font and no request to another host."""
import re
from html import escape
from io import BytesIO

from docutils import nodes
from matplotlib import mathtext
from matplotlib.font_manager import FontProperties


def formula_svg(
    tex: str,  # between the dollar signs
    size: float = 12.0,  # points
) -> str:  # an <svg> element that takes the colour of the text around it
    "One formula as SVG; what matplotlib cannot read is an error that shows the formula."
    out = BytesIO()
    try: depth = mathtext.math_to_image(f'${tex}$', out, prop=FontProperties(size=size), format='svg')
    except ValueError as e:
        raise ValueError(f"formula ${tex}$ cannot be drawn ({e}): keep to what matplotlib's mathtext knows") from e
    svg = out.getvalue().decode()
    svg = svg[svg.index('<svg'):].replace('fill="#000000"', 'fill="currentColor"')
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.S)
    return svg.replace('<svg ', f'<svg class="formula" role="img" aria-label="{escape(tex)}" '
                                f'style="vertical-align:{-depth:.1f}pt" ', 1)


def visit_inline(self, node):
    "Sphinx calls this for `$...$`."
    self.body.append(formula_svg(node.astext()))
    raise nodes.SkipNode


def visit_display(self, node):
    "Sphinx calls this for `$$...$$`."
    self.body.append(f'<div class="formula-line">{formula_svg(" ".join(node.astext().split()), 14.0)}</div>')
    raise nodes.SkipNode


def setup(app):
    "Register the renderer under the name that conf.py gives."
    app.add_html_math_renderer('mathtext', (visit_inline, None), (visit_display, None))
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
