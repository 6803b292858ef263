"""The least that a manifest must hold."""

from __future__ import annotations

from typing import Any

from llmc.runtime.artifact import SCHEMA

BASE: dict[str, Any] = {
    "schema": SCHEMA, "llmc": "0", "weights": [], "targets": [], "source": {"sha256": "0" * 64, "files": []}, "toolchain": {}, "conformance": {}, "canary": {},
    "model": {"architecture": "Tiny", "parameters": 0, "context": 1, "vocab": 1, "dtype": "f32", "kv_dtype": "f32"}, "quant": {}, "recipe": {}, "fallbacks": [],
    "notes": [], "memory_plan": {"weight_bytes": 0, "cache_bytes_per_block": 0, "buffer_bytes": 0},
}  # fmt: skip
