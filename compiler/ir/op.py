"""What an operation is: a frozen dataclass of attributes with a type rule and a reference implementation.

Each op is one file in `ops/`; its class is found there by name, so adding an op costs that file and its test.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from ...errors import VerifyError, nearest
from .types import TensorType

if TYPE_CHECKING:
    import torch

    from .reference import Context


@dataclass(frozen=True)
class Op:
    """Base of all ops; subclasses set `name` and add attributes as fields."""

    name: ClassVar[str]

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        """Types of the outputs; raises VerifyError when the inputs do not fit."""
        raise NotImplementedError

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The values of the outputs, in torch; `ctx` carries the sizes of T and R and the packed sequences."""
        raise NotImplementedError

    def attributes(self) -> dict[str, object]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def require(condition: bool, message: str) -> None:
    """Raise VerifyError(message) unless the condition holds."""
    if not condition:
        raise VerifyError(message)


@cache
def catalog() -> dict[str, type[Op]]:
    """Every op by name: the classes in `ops/`, and those that other packages offer as `llmc.ops` entry points."""
    from importlib.metadata import entry_points

    from . import ops

    found: dict[str, type[Op]] = {}
    for info in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"{ops.__name__}.{info.name}")
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, Op) and item.__module__ == module.__name__:
                found[item.name] = item
    for entry in entry_points(group="llmc.ops"):
        op = entry.load()
        found[op.name] = op
    return found


ATTRIBUTE_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def make_op(name: str, attributes: dict[str, object]) -> Op:
    """Construct an op from its name and attributes; raises VerifyError on an unknown name or attribute."""
    cls = catalog().get(name)
    if cls is None:
        raise VerifyError(f"unknown op {name!r}", nearest(name, list(catalog())))
    known = {f.name for f in fields(cls)}
    for key in attributes:
        if key not in known:
            raise VerifyError(f"op {name} has no attribute {key!r}", nearest(key, sorted(known)))
    for field in fields(cls):
        kind = str(field.type)
        if field.name in attributes and kind in ATTRIBUTE_TYPES and not _is_a(attributes[field.name], kind):
            raise VerifyError(f"op {name}: {field.name} is {attributes[field.name]!r}, not of the type {kind}")
    return cls(**attributes)


def _is_a(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, ATTRIBUTE_TYPES[kind])
