"""Sphinx extension: the library's docstrings, which are plain text, as reStructuredText for the API pages.

    `name`                             code, linked where it names an object of the documented module
    name: text                         at the start of a line, if `name` is a parameter or a field: its description
    a block indented by four spaces    shown as it is: a formula, a small table, a listing
    Args:, Raises: and their like      left to Sphinx's napoleon
    * item                             a list

Nothing else is markup: an asterisk, a bar or an underscore in a formula stands for itself. A line that is indented by
accident continues its paragraph. After the descriptions of parameters, the sentences on cost, memory, state, source,
errors and the nearest relative (`Cost: ...`, `Raises ...`) are a paragraph of their own.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from sphinx.application import Sphinx

from gradhpo.book_api import modules

_CODE = re.compile(r"``(.+?)``|`([^`]+)`", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_SPECIAL = re.compile(r"[\\*|]|(?<=\w)_(?!\w)")
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note):$")
_CLOSING = re.compile(r"(?<=\.)\s+(?=(?:Cost|Memory|State|Source|Raises|It differs)\b)")
_BULLETS = ("* ", "- ")
_BEFORE, _AFTER = " \n'\"([{<-/:", " \n'\")]}>-/\\:.,;!?"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks, before napoleon reads the docstring."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)
    app.connect("autodoc-process-signature", _process_signature)
    app.connect("autodoc-skip-member", _skip_member)
    return {"version": "1", "parallel_read_safe": True}


def markup(lines: list[str], parameters: Iterable[str] = (), targets: Mapping[str, str] | None = None) -> list[str]:
    """Return a docstring's lines as reStructuredText.

    Args:
        lines: the docstring, its indentation removed.
        parameters: names whose descriptions it may hold.
        targets: full names of what it may call by a shorter one; that of a module ends with a dot.
    """
    out: list[str] = []
    section = literal = False
    for paragraph in _paragraphs(lines):
        indented = paragraph[0].startswith(" ")
        section = bool(_SECTION.match(paragraph[0])) or (section and indented)
        if section:
            out += _inline("\n".join(paragraph).replace("Attributes:", "Args:"), targets or {})
        elif indented:
            out += [
                *([] if literal else [".. code-block:: text", ""]),
                *(_CODE.sub(r"\1\2", line) for line in paragraph),
            ]
        else:
            out += _prose(paragraph, parameters, targets or {})
        out.append("")
        literal = indented and not section
    return out


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    for blank, group in groupby(lines, key=lambda line: not line.strip()):
        if not blank:
            yield list(group)


def _prose(lines: list[str], parameters: Iterable[str], targets: Mapping[str, str]) -> list[str]:
    """A paragraph, or a list, or the descriptions of parameters.

    A description begins a line or follows another, and ends where indented lines do or a closing sentence begins.
    """
    names = "|".join(map(re.escape, parameters)) or "(?!)"
    start = rf"(?:{names})(?: `[^`]+`)?: "
    text = "\n".join(lines)
    if re.search(rf"(?:^|\n|(?<=[.;])\s){start}", text):
        text = re.sub(r"(\n +.*\n)(?! )", r"\1\n", text)
        text = _CLOSING.sub("\n\n", text)
    text = re.sub(r"\n +", "\n", text)
    parts = re.split(rf"(?:^|\n)(?=[*-] |{start})|(?<=[.;])\s(?={start})|\n\n", text)
    out: list[str] = []
    for part in filter(None, parts):
        described = re.match(rf"({names})(?: (`[^`]+`))?: ", part)
        if described:
            text = " ".join(filter(None, (described[2], part[described.end() :].rstrip(";"))))
            out += _hanging(f":param {described[1]}: ", _inline(text, targets))
        elif part.startswith(_BULLETS):
            out += _hanging("* ", _inline(part[2:], targets))
        else:
            out += ["", *_inline(part, targets), ""]
    return out


def _hanging(head: str, lines: list[str]) -> list[str]:
    return [head + lines[0], *(f"  {line}" for line in lines[1:])]


def _inline(text: str, targets: Mapping[str, str]) -> list[str]:
    """Lines of a paragraph with its code marked and everything else escaped."""
    out, end = "", 0
    for code in _CODE.finditer(text):
        out += _SPECIAL.sub(r"\\\g<0>", text[end : code.start()])
        out += "" if not out or out[-1] in _BEFORE else "\\ "
        out += _literal(" ".join((code[1] or code[2]).split()), targets)
        end = code.end()
        out += "" if text[end : end + 1] in _AFTER else "\\ "
    return (out + _SPECIAL.sub(r"\\\g<0>", text[end:])).split("\n")


def _literal(code: str, targets: Mapping[str, str]) -> str:
    if not _NAME.fullmatch(code):
        return f"``{code}``"
    first, dot, rest = code.partition(".")
    whole = targets.get(first) or targets.get(first + dot)
    return f":py:obj:`{code} <{whole}{dot}{rest}>`" if whole else f":py:obj:`{code}`"


def _process_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    parameters = _parameters(obj) if what in ("class", "exception", "function", "method") else []
    lines[:] = markup(lines, parameters, _targets(app.env.temp_data.get("autodoc:module", "")))


def _parameters(obj: Any) -> list[str]:
    try:
        return list(inspect.signature(obj).parameters)
    except (TypeError, ValueError):  # a builtin's
        return []


def _targets(module: str) -> dict[str, str]:
    """What a docstring may call by a shorter name -> its full name: what its module has imported from the rest of the
    library; and, with a dot after it, every module of the library."""
    known = vars(sys.modules[module]) if module in sys.modules else {}
    full_names = {name: _full_name(each) for name, each in known.items()}
    imported = {n: full for n, full in full_names.items() if full.startswith("gradhpo.") and full != f"{module}.{n}"}
    return imported | {f"{name}.": f"gradhpo.{name}" for name in modules()}


def _full_name(each: Any) -> str:
    if inspect.ismodule(each):
        return each.__name__
    return f"{each.__module__}.{each.__qualname__}" if inspect.isclass(each) or inspect.isfunction(each) else ""


def _process_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, None] | None:
    """A protocol is never called: no signature. A frozen dataclass's `__init__` returns nothing worth saying."""
    if what == "class" and getattr(obj, "_is_protocol", False):
        return "", None
    if what in ("class", "exception") and signature is not None:
        return signature, None
    return None


def _skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Show every member of a protocol; leave out what repeats the signature: the fields of a dataclass or tuple."""
    owner = _owner(app)
    if owner is None or name.startswith("_"):
        return None
    if getattr(owner, "_is_protocol", False):
        return False if name in vars(owner) else None
    fields = {f.name for f in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else set()
    return True if name in fields | set(getattr(owner, "_fields", ())) else None


def _owner(app: Sphinx) -> type | None:
    """The class whose members autodoc is going through."""
    module, name = (app.env.temp_data.get(f"autodoc:{key}") for key in ("module", "class"))
    found = getattr(sys.modules.get(module or ""), name or "", None)
    return found if isinstance(found, type) else None
