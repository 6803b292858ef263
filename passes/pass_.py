"""What a pass is: a frozen dataclass with `run(graph) -> graph`; its fields are its options."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar

from ..compiler.ir.graph import Graph
from ..errors import UsageError, nearest


@dataclass(frozen=True)
class Pass:
    """Base of all passes: valid IR in, valid IR out, the same values (in wide mode)."""

    name: ClassVar[str]

    def run(self, graph: Graph) -> Graph:
        raise NotImplementedError


@cache
def catalog() -> dict[str, type[Pass]]:
    """Every pass by name: the classes in this folder, and `llmc.passes` entry points of other packages."""
    from importlib.metadata import entry_points

    package = importlib.import_module(__package__ or "")
    found: dict[str, type[Pass]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, Pass) and item.__module__ == module.__name__ and hasattr(item, "name"):
                found[item.name] = item
    for entry in entry_points(group="llmc.passes"):
        made = entry.load()
        found[made.name] = made
    return found


def parse_passes(text: str) -> list[Pass]:
    """Parse `simplify,quantize{scheme=int4}`; raises UsageError that names the nearest pass or option."""
    passes = []
    for item in re.split(r",(?![^{]*\})", text) if text.strip() else []:
        match = re.fullmatch(r"\s*([\w-]+)\s*(?:\{(.*)\})?\s*", item)
        if match is None:
            raise UsageError(f"not a pass: {item!r}", "write them as 'simplify,quantize{scheme=int4}'")
        name = match[1].replace("-", "_")
        cls = catalog().get(name)
        if cls is None:
            raise UsageError(f"unknown pass {match[1]!r}", nearest(name, list(catalog())))
        known = {f.name for f in fields(cls)}
        options = {}
        for pair in filter(None, (p.strip() for p in (match[2] or "").split(","))):
            key, separator, value = pair.partition("=")
            if not separator or key.strip() not in known:
                raise UsageError(
                    f"pass {name} has no option {key.strip()!r}",
                    nearest(key.strip(), sorted(known)) or f"{name} takes no options",
                )
            options[key.strip()] = _option(value.strip())
        passes.append(cls(**options))
    return passes


def _option(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
