"""Sphinx extension: what the API pages show of the two packages, beside what autodoc and napoleon do by themselves.

Docstrings are Google style, with single backticks for code: the default role `name` links what is documented.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from typing import Any

from docutils.nodes import Element, Node, literal, reference, system_message
from docutils.parsers.rst.states import Inliner
from docutils.utils import unescape
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment

_NAME = re.compile(r"[A-Za-z_][\w.]*")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks."""
    app.setup_extension("sphinx.ext.autodoc")
    app.add_role("name", _name)
    app.connect("autodoc-process-signature", _process_signature)
    app.connect("autodoc-skip-member", _skip_member)
    app.connect("missing-reference", _find_by_short_name)
    return {"version": "1", "parallel_read_safe": True}


def _name(
    role: str,
    raw: str,
    text: str,
    line: int,
    inliner: Inliner,
    options: dict[str, Any] | None = None,
    content: Sequence[str] = (),
) -> tuple[list[Node], list[system_message]]:
    """Role of single backticks: a name is a reference where it can be one, anything else stands as it is written."""
    if _NAME.fullmatch(text):
        return PyXRefRole()("py:obj", raw, text, line, inliner, options or {}, content)
    return [literal(raw, unescape(text), classes=["docutils"])], []


def _find_by_short_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> reference | None:
    """Link `Hyper` or `outer.SGD` to the one documented object whose full name ends so, in whatever module."""
    if node.get("refdomain") != "py" or node.get("reftype") != "obj":
        return None
    domain = env.get_domain("py")
    found = [name for name, *_ in domain.get_objects() if name.endswith(f".{node['reftarget']}")]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, content)


def _process_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, None] | None:
    """Leave out the signature of a protocol, which is never called, and what a class's `__init__` returns."""
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
    """Return the class whose members autodoc is going through."""
    module, name = (app.env.temp_data.get(f"autodoc:{key}") for key in ("module", "class"))
    found = getattr(sys.modules.get(module or ""), name or "", None)
    return found if isinstance(found, type) else None
