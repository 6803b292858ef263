"""Where compiled kernels are kept, by content: a cache that cannot be written costs time, nothing else."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/llmc/kernels, or its default."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "llmc" / "kernels"


def cached(name: str) -> bytes | None:
    """What was kept under a name."""
    path = cache_folder() / name
    return path.read_bytes() if path.is_file() else None


def keep(name: str, data: bytes) -> None:
    """Keep bytes under a name; whole or not at all."""
    path = cache_folder() / name
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as stream:
            stream.write(data)
        Path(stream.name).replace(path)
