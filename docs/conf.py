"""Sphinx settings; what there is to know about the project comes from settings.ini."""
import sys
from configparser import ConfigParser
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))
ini = ConfigParser(delimiters=['='])
ini.read(here.parent/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

project, author, release, copyright = cfg['title'], cfg['author'], cfg['version'], cfg['copyright']
extensions = ['myst_nb', 'mathtext', 'sphinxcontrib.bibtex']
bibtex_bibfiles = ['references.bib']  # a key that is cited and not there is a warning, hence a failure
bibtex_reference_style = 'author_year'
root_doc = 'index'
exclude_patterns = ['data', 'figures']

# Outputs are those in the notebooks: nbdev_test runs them, the site only shows them.
nb_execution_mode = 'off'
nb_code_prompt_show = 'Show the source'
nb_code_prompt_hide = 'Hide the source'
nb_number_source_lines = False
nb_ipywidgets_js = {}
myst_enable_extensions = ['colon_fence', 'dollarmath', 'deflist', 'attrs_inline']
myst_heading_anchors = 3
myst_dmath_double_inline = True

html_theme = 'sphinx_book_theme'
html_title = f"{cfg['title']} {release}"
html_math_renderer = 'mathtext'
html_static_path = ['static']
html_css_files = ['site.css']
html_favicon = 'static/favicon.svg'
html_copy_source = False
html_show_sourcelink = False
html_context = dict(default_mode='auto')  # light or dark as the reader's system has it
html_theme_options = dict(use_download_button=False, use_fullscreen_button=False, use_issues_button=False,
                          use_repository_button=False, show_navbar_depth=1, show_toc_level=2, home_page_in_toc=True,
                          navbar_start=[], navbar_center=[], navbar_end=[], navbar_persistent=[])
pygments_style = 'friendly'


def wide_home(app, page, template, context, doctree):
    "The home page has no table of its contents: its findings and their figure need the width."
    if page == 'index': context['meta'] = {**(context.get('meta') or {}), 'html_theme.sidebar_secondary.remove': True}


def setup(app): app.connect('html-page-context', wide_home)
