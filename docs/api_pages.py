"""The pages of the API reference, made from what the packages publish: one page a package, nothing kept by hand.

Public means listed in `__all__` (CONTRIBUTING, rule 14), so that is what is walked:

1. Every package below the four roots that has an `__all__`, and the modules that such a package publishes as modules
   (`mechvis.edits`); of a module without `__all__` its own functions, classes and documented constants.
2. A name that several packages publish (`circuits.patch` is `circuits.patching.patch`) has one full entry, where its
   address is shortest. The other pages have its row in their table, with a link.
3. A page is a title, the package's docstring, a table of its names with their first sentences, and the entries for
   Sphinx's autodoc.

As a Sphinx extension it writes the pages before Sphinx reads them, and prepares docstrings and references
(`docstrings.py`). Without Sphinx, in the tests, `pages` and `text_of` give the same texts.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from docstrings import markup, settle

ROOTS = ("mechvis", "circuits", "probes", "sae")
"""The importable packages of the repository, in the order of the reference."""

NOT_FOR_READERS = re.compile(r"\.commands($|\.)|^mechvis\.testing\.trained\.training")
"""Packages whose names serve other parts of the repository: the commands document themselves by `--help`."""

ALSO = ("mechvis.models.load", "mechvis.models.parts", "mechvis.record", "mechvis.results", "mechvis.patches")
"""Modules without a package that publishes them, which the pages tell users to call."""

Report = Callable[[str, Exception], None] | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One public name of one package."""

    name: str
    """As users write it after the package's name and a dot."""
    package: str
    """The package or module that publishes it."""
    kind: str
    """`function`, `class`, `exception`, `data` or `module`."""
    summary: str
    """First sentence of its docstring; empty if it has none."""
    home: str
    """Address of its full entry: this one, or the shortest of those that publish the same object."""
    doc: str = ""
    """Of data: the docstring under it."""
    origin: str = ""
    """Of functions and classes: the module that defines it, and its name there; annotations say this."""

    @property
    def address(self) -> str:
        """Package and name."""
        return f"{self.package}.{self.name}"


@dataclass(frozen=True, kw_only=True)
class Page:
    """One package or module with its names."""

    package: str
    """Import name."""
    doc: str
    """Its docstring; empty if it has none."""
    entries: tuple[Entry, ...]
    """Its public names, sorted."""
    shadowed: bool
    """Whether a function has this very address (`mechvis.decompose`): then the address is the function's."""

    @property
    def summary(self) -> str:
        """First sentence of the docstring."""
        return first_sentence(self.doc)


def packages(report: Report = None) -> Iterator[tuple[ModuleType, dict[str, Any]]]:
    """Every package with an `__all__`, every module that one of them publishes, and `ALSO`; each once.

    Args:
        report: called with an address and the error where something cannot be imported; None: the error is raised.

    Yields:
        The module, and its public names with what they stand for.
    """
    seen: dict[str, ModuleType] = {}
    for root in ROOTS:
        top = importlib.import_module(root)
        below = (info.name for info in pkgutil.walk_packages(top.__path__, f"{root}.") if info.ispkg)
        for name in (root, *sorted(below)):
            if NOT_FOR_READERS.search(name):
                continue
            try:
                package = importlib.import_module(name)
                if not hasattr(package, "__all__"):
                    continue
                published = [getattr(package, public) for public in package.__all__]
            except (ImportError, AttributeError) as error:
                if report is None:
                    raise
                report(name, error)
                continue
            seen[name] = package
            for value in published:
                if isinstance(value, ModuleType):
                    seen.setdefault(value.__name__, value)
    for name in ALSO:
        seen.setdefault(name, importlib.import_module(name))
    for name in sorted(seen, key=lambda name: (ROOTS.index(name.split(".")[0]), name)):
        yield seen[name], _public(seen[name])


def pages(report: Report = None) -> list[Page]:
    """All pages, with every entry's home settled.

    Args:
        report: as for :func:`packages`.

    Returns:
        One page per public package and module, the four roots in the order of `ROOTS`.
    """
    found = list(packages(report))
    homes: dict[int, str] = {}
    for module, names in found:
        for name, value in names.items():
            if _kind(value) in ("function", "class", "exception"):
                address = f"{module.__name__}.{name}"
                best = homes.get(id(value), address)
                homes[id(value)] = min(best, address, key=lambda given: (given.count("."), len(given), given))
    made = []
    for module, names in found:
        entries = []
        for name, value in sorted(names.items(), key=lambda pair: (pair[0].lower(), pair[0])):
            address, kind = f"{module.__name__}.{name}", _kind(value)
            doc = _constant_doc(name, value, module) if kind == "data" else _doc(value)
            home = value.__name__ if kind == "module" else homes.get(id(value), address)
            entries.append(
                Entry(
                    name=name,
                    package=module.__name__,
                    kind=kind,
                    summary=first_sentence(doc),
                    home=home,
                    doc=doc if kind == "data" else "",
                    origin=f"{value.__module__}.{value.__qualname__}" if kind not in ("data", "module") else "",
                )
            )
        made.append(
            Page(
                package=module.__name__,
                doc=inspect.cleandoc(module.__doc__ or ""),
                entries=tuple(entries),
                shadowed=module.__name__ in homes.values(),
            )
        )
    return made


def _public(module: ModuleType) -> dict[str, Any]:
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    documented = _documented_constants(module)
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            name in documented
            or ((inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__)
        )
    }


@cache
def _documented_constants(module: ModuleType) -> dict[str, str]:
    """The upper-case constants of a module, and type aliases, that have a docstring under them."""
    found, before = {}, None
    for node in ast.parse(inspect.getsource(module)).body:
        if before and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[before] = inspect.cleandoc(str(node.value.value))
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        before = targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else None
    return {name: doc for name, doc in found.items() if not name.startswith("_")}


def _constant_doc(name: str, value: Any, published_by: ModuleType) -> str:
    """The docstring under a constant, from the module that assigns it."""
    inside = (module for path, module in sorted(sys.modules.items()) if path.split(".")[0] in ROOTS)
    for module in (published_by, *inside):
        if getattr(module, "__file__", None) and vars(module).get(name) is value:
            doc = _documented_constants(module).get(name)
            if doc:
                return doc
    return ""


def _kind(value: Any) -> str:
    if isinstance(value, ModuleType):
        return "module"
    # A name for a shape of jaxtyping, or for `Any`, is data.
    if inspect.isclass(value) and value.__module__.split(".")[0] in ROOTS:
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if inspect.isroutine(value) else "data"


def _doc(value: Any) -> str:
    """A docstring of the object's own; a dataclass without one is given its signature by Python, which is none."""
    doc = inspect.cleandoc(getattr(value, "__doc__", None) or "")
    return "" if inspect.isclass(value) and doc.startswith(f"{value.__name__}(") else doc


def first_sentence(doc: str) -> str:
    """The first sentence of a docstring, in one line; a colon or the end of the paragraph ends it too.

    Args:
        doc: docstring, cleaned of its indentation.

    Returns:
        The sentence with its full stop, or nothing.
    """
    paragraph = " ".join(doc.split("\n\n")[0].split())
    sentence = re.match(r"(?:`[^`]*`|[^`])*?(?:[.?!](?=\s|$)|$)", paragraph)
    text = (sentence.group() if sentence else paragraph).rstrip(":").strip()
    return text if not text or text[-1] in ".?!" else f"{text}."


def links(made: list[Page]) -> dict[str, str]:
    """Every address under which a reader may meet a public name (also where it is defined), and where its entry is.

    Args:
        made: what :func:`pages` gives.

    Returns:
        Address -> address of the entry, or of the page for packages.
    """
    every = [entry for page in made for entry in page.entries]
    origins = {entry.origin: entry.home for entry in every if entry.origin}
    return {page.package: page.package for page in made} | origins | {entry.address: entry.home for entry in every}


def write(folder: Path, made: list[Page]) -> list[Path]:
    """Write all pages, and nothing where nothing changed, so that Sphinx need not read a page again.

    Args:
        folder: where the pages go, `<package>.rst` each; pages of packages that are gone are removed.
        made: what :func:`pages` gives.

    Returns:
        The pages' paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    homes = links(made)
    paths = [folder / f"{page.package}.rst" for page in made]
    for page, path in zip(made, paths, strict=True):
        text = text_of(page, homes)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for old in set(folder.glob("*.rst")) - set(paths):
        old.unlink()
    return paths


def text_of(page: Page, homes: Mapping[str, str]) -> str:
    """One page as reStructuredText.

    Args:
        page: the package.
        homes: what :func:`links` gives.

    Returns:
        The text of the page.
    """
    title = page.package.replace("_", "\\_")
    # `mechvis.decompose` is a package and the function that everybody calls: the name belongs to the function.
    directive = "currentmodule" if page.shadowed else "module"
    parts = [
        f"{title}\n{'=' * len(title)}",
        f".. py:{directive}:: {page.package}",
        markup(page.doc, page.package, homes),
    ]
    rows = [
        f"   * - {_link(entry)}\n     - {markup(entry.summary, entry.address, homes).strip()}".rstrip()
        for entry in page.entries
    ]
    if rows:
        parts.append(".. list-table::\n   :widths: 30 70\n   :class: names\n\n" + "\n".join(rows))
    parts += [
        _directive(entry, homes) for entry in page.entries if entry.home == entry.address and entry.kind != "module"
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _link(entry: Entry) -> str:
    role = {"function": "func", "class": "class", "exception": "exc", "module": "mod"}.get(entry.kind, "data")
    return f":py:{role}:`{entry.name} <{entry.home}>`"


def _directive(entry: Entry, homes: Mapping[str, str]) -> str:
    if entry.kind == "data":
        text = markup(entry.doc, entry.address, homes) or f"See :py:mod:`{entry.package}`."
        return f".. py:data:: {entry.address}\n\n" + "\n".join(f"   {line}".rstrip() for line in text.split("\n"))
    options = (
        ["   :members:", "   :member-order: bysource", "   :show-inheritance:"] if entry.kind != "function" else []
    )
    return "\n".join([f".. auto{entry.kind}:: {entry.address}", *options])


def setup(app: Any) -> dict[str, Any]:
    """Entrance for Sphinx: write the pages first, and prepare every docstring."""
    from sphinx import addnodes
    from sphinx.ext.napoleon import Config, GoogleDocstring
    from sphinx.util import logging

    homes: dict[str, str] = {}

    def make_pages(app: Any) -> None:
        logger = logging.getLogger(__name__)
        made = pages(lambda name, error: logger.warning("the reference lacks %s: %s", name, error))
        homes.update(links(made))
        write(Path(app.srcdir) / "docs" / "api", made)

    def prepare(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        # What stands under a field or property is prose; napoleon would take what precedes a colon in it for a type.
        sections = "function" if what in ("attribute", "property", "data") else what
        text = markup("\n".join(lines), name, homes)
        lines[:] = GoogleDocstring(text, Config(napoleon_use_rtype=False), app, sections, name, obj, options).lines()

    def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
        """Methods that other libraries give to our classes are not ours to document."""
        module = getattr(obj, "__module__", None)
        foreign = inspect.isroutine(obj) and isinstance(module, str) and module.split(".")[0] not in ROOTS
        return True if foreign else None

    def settled(app: Any, document: Any) -> None:
        references = document.findall(addnodes.pending_xref)
        settle([node for node in references if node.get("refdomain") == "py" and node.hasattr("refspecific")], homes)

    app.connect("builder-inited", make_pages)
    app.connect("doctree-read", settled)
    app.connect("autodoc-process-docstring", prepare)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
