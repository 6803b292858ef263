"""Running a compiled model's C sources outside Python, through harness.c: for other architectures, and for sanitizers."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import llmc
import numpy as np
from llmc.runtime.artifact import open_artifact

HARNESS = Path(__file__).parent / "codegen" / "harness.c"


def unpack_sources(artifact: Path, folder: Path) -> int:
    """Write the artifact's sources and the harness into a folder; returns the vocabulary's size."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_artifact(artifact) as opened:
        for name in opened.members:
            if name.startswith("kernels/cpu/source/"):
                (folder / name.rpartition("/")[2]).write_bytes(opened.read(name))
        vocabulary = int(opened.manifest["model"]["vocab"])
    (folder / "harness.c").write_bytes(HARNESS.read_bytes())
    return vocabulary


def write_input(artifact: Path, runs: list[list[int]], target: Path) -> None:
    """The harness's input file: the artifact's weights and the token ids to run."""
    with open_artifact(artifact) as opened:
        sizes = [size for _, size in opened.manifest["weights"]]
        words = [len(sizes), int(opened.manifest["model"]["vocab"]), *sizes, len(runs)]
        for run in runs:
            words += [len(run), *run]
        raw = artifact.read_bytes()
        with target.open("wb") as out:
            out.write(struct.pack(f"<{len(words)}i", *words))
            for name, _ in opened.manifest["weights"]:
                at, size = opened.tensors[name]
                out.write(raw[at : at + size])


def build_and_run(
    artifact: Path, runs: list[list[int]], folder: Path, compiler: list[str], launcher: list[str], threads: int = 2
) -> list[np.ndarray]:
    """Compile the harness, run it, and return the logits [T, V] of each run."""
    vocabulary = unpack_sources(artifact, folder)
    write_input(artifact, runs, folder / "in.bin")
    built = subprocess.run([*compiler, "-o", "harness", "harness.c", "-lpthread"], cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    done = subprocess.run(
        [*launcher, "./harness", "in.bin", "out.bin", str(threads)], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    flat = np.fromfile(folder / "out.bin", np.float32)
    out, at = [], 0
    for run in runs:
        out.append(flat[at : at + len(run) * vocabulary].reshape(len(run), vocabulary))
        at += len(run) * vocabulary
    return out


def expected(artifact: Path, runs: list[list[int]]) -> list[np.ndarray]:
    """The same logits by the artifact itself on this machine."""
    with llmc.load(artifact, portable=True) as model:
        return model.logits(runs)
