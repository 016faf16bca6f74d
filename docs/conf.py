"""Settings of the documentation's site: `make docs` builds it, without network, and any warning fails it."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ecgfm_hf  # noqa: E402

project = "ecgfm-hf"
author = "the ecgfm-hf contributors"
version = release = ecgfm_hf.__version__
html_title = f"ecgfm-hf {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False

# Links to headings are checked like links to pages.
myst_heading_anchors = 3

# Signatures without types: the docstrings' Args say them, with shapes and units.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False
# Docstrings write names between single backticks, as Markdown does.
default_role = "code"

_QUOTED = re.compile(r"(?s)``.*?``|`[^`]*`")


def as_restructured_text(app, what, name, obj, options, lines):
    """Docstrings are Markdown in the style of Hugging Face; Sphinx reads reStructuredText."""
    text = "\n".join(lines)
    # Sphinx links the errors of a Raises section by itself.
    text = re.sub(r"(?m)^(\s+)((?:, |\[?`\w+`\]?)+):(?=\s)", lambda found: found[1] + _bare(found[2]) + ":", text)
    # Links between names: [`ECGRecord`], [`data.prepare`].
    text = re.sub(r"\[`~?([\w.]+?)(?:\(\))?`\]", r":py:obj:`\1`", text)
    # What stands between backticks stays as it is; outside of them stars and underscores are no markup.
    parts, end = [], 0
    for found in _QUOTED.finditer(text):
        parts += [_plain(text[end : found.start()]), _code(found[0], text[: found.start()])]
        end = found.end()
    text = "".join([*parts, _plain(text[end:])])
    lines[:] = _tables(_spaced_lists(text)).split("\n")


def _bare(names: str) -> str:
    return re.sub(r"[\[\]`]", "", names)


def _plain(text: str) -> str:
    text = re.sub(r"(?<!\*)\*\*(?=\w+\b(?!\*))", r"\\*\\*", text)
    return re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text)


def _code(quoted: str, before: str) -> str:
    """`name` as a literal, where it is not the text of a role."""
    if quoted.startswith("``") or before.endswith(":py:obj:"):
        return quoted
    return f"``{' '.join(quoted.strip('`').split())}``"


def _spaced_lists(text: str) -> str:
    """An empty line before a list that begins right under a paragraph."""
    out: list[str] = []
    for line in text.split("\n"):
        if re.match(r"\s*- ", line) and out and out[-1].strip() and not re.match(r"\s*- |\s+", out[-1]):
            out.append("")
        out.append(line)
    return "\n".join(out)


def _tables(text: str) -> str:
    """Tables of Markdown as list-tables."""

    def table(found: re.Match) -> str:
        rows = [row.strip().strip("|").split("|") for row in found[0].strip().split("\n")]
        out = [".. list-table::", "   :header-rows: 1", ""]
        for row in [rows[0], *rows[2:]]:
            out += [f"   {'* -' if not place else '  -'} {cell.strip()}".rstrip() for place, cell in enumerate(row)]
        return "\n".join(found[1] + line if line else "" for line in out) + "\n"

    return re.sub(r"(?m)^([ ]*)\|.*\n[ ]*\|[ |:-]+\|\n(?:[ ]*\|.*(?:\n|$))+", table, text)


def without_foreign_arguments(app, what, name, obj, options, signature, return_annotation):
    """Leaves out the arguments of a constructor that a class of ours has from another library."""
    if what == "class":
        owner = next(cls for cls in obj.__mro__ if "__init__" in vars(cls) or "__new__" in vars(cls))
        if not owner.__module__.startswith("ecgfm_hf"):
            return "()", None
    return signature, return_annotation


def setup(app):
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)
    app.connect("autodoc-process-signature", without_foreign_arguments)
