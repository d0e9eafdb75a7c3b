"""Sphinx's settings: the pages are ``docs/``, these settings are in ``docs/en``.

sphinx-build -W --keep-going -c docs/en docs docs/_build/html
"""

from mmquant_jacinto import __version__

project = 'mmquant_jacinto'
copyright = 'the authors of mmquant_jacinto, Apache-2.0'
version = release = __version__
extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
root_doc = 'en/index'
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'{project} {version}'
# Headings that other pages link to.
myst_heading_anchors = 4
autodoc_typehints = 'none'  # the docstrings say them, with shapes
autodoc_member_order = 'bysource'
napoleon_use_rtype = False
napoleon_use_ivar = True  # what a class documents is no second entry
# Tables that commands write begin with the headings of their parts.
suppress_warnings = ['myst.header']
# The extra packages of an option may be absent where the pages are made.
autodoc_mock_imports = ['mmrazor']
