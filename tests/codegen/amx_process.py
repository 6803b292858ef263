"""Run by test_amx.py with tiles.c preloaded: an artifact's AMX kernels must give the bits of its x86-64-v3 kernels, however computed."""

from __future__ import annotations

import ctypes
import json
import sys

import numpy as np
from llmc.runtime.executors import cpu
from schedules import load, same_bits_however_computed


def main(path: str, sequences: list[list[int]]) -> None:
    levels, emulation = cpu.available_levels(), ctypes.CDLL(None)
    emulation.tiles_multiplied.restype = ctypes.c_uint64
    here = "x86-64-amx" in levels
    cpu.available_levels = lambda: ("x86-64-amx", *levels)
    with load(path, isa="x86-64-v3") as model:
        expected = model.logits(sequences)
    assert not emulation.tiles_multiplied(), "x86-64-v3 multiplied tiles"
    with load(path, isa="x86-64-amx") as model:
        for got, wanted in zip(model.logits(sequences), expected, strict=True):
            assert got.tobytes() == wanted.tobytes(), f"AMX differs by {np.abs(got - wanted).max()}"
        library = model.executor._library
        assert (library.llmc_peak_float(3, 1.0), library.llmc_peak_int8(3, 2)) == (1.0, 2)
    assert here or emulation.tiles_multiplied() > 24, "no tile was multiplied"
    same_bits_however_computed(path, sequences, isa="x86-64-amx")


if __name__ == "__main__":
    main(sys.argv[1], json.load(sys.stdin))
