"""The wheel holds what the tree holds, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("cli", "codegen", "compiler", "passes", "quant", "runtime", "toolchain")


def tree():
    files = {p.relative_to(ROOT) for room in ROOMS for p in (ROOT / room).rglob("*") if p.is_file()}
    files |= {p.relative_to(ROOT) for p in ROOT.glob("*.py")} | {Path("py.typed")}
    return {f"llmc/{p}" for p in files if "__pycache__" not in p.parts and p.suffix not in (".pyc", ".orig")}


def test_the_wheels_contents_are_the_trees(tmp_path):
    copy = tmp_path / "tree"
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns(".git", ".venv", ".build", "build", "*.egg-info", "tests", "__pycache__", ".mypy_cache"),
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path / "out", copy],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        found = {n for n in opened.namelist() if ".dist-info/" not in n}
    assert found == tree()
