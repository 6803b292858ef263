"""Runs benchmarks.gpu from a checkout that is not installed: on a bare machine with a GPU, numpy and nothing else of ours."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("llmc", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
assert SPEC is not None and SPEC.loader is not None
sys.modules["llmc"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sys.modules["llmc"])
runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"), run_name="__main__")
