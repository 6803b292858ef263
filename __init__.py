"""llmc: a compiler for language models. `llmc.compile(...)` makes an artifact, `llmc.load(...)` runs one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import CompileReport, compile
    from .runtime.api import Model, load

__all__ = ["CompileReport", "Model", "compile", "load"]

_WHERE = {"compile": "pipeline", "CompileReport": "pipeline", "load": "runtime.api", "Model": "runtime.api"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'llmc' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
