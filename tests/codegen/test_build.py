"""Rendering and building: the same graph gives the same source, the same source the same binary, in any folder."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from llmc.codegen.cpu.lower import lower
from llmc.codegen.cpu.render import _periods, render
from llmc.compile_options import CompileOptions
from llmc.compiler.ir.ops.linear import Linear
from llmc.compiler.ir.ops.pointwise import Pointwise
from llmc.compiler.ir.ops.reduce import Reduce
from llmc.errors import EnvironmentLacks, LlmcError, UnsupportedError
from llmc.pipeline import run_passes
from llmc.toolchain import c as build_module
from llmc.toolchain import kernel_cache
from llmc.toolchain.c import build, toolchain
from tiny_graphs import TOKENS, Builder


def small():
    b = Builder()
    b.out("y", b.add(Linear(), b.table("x", np.ones((TOKENS, 33))), b.param("w", np.ones((7, 33)))))
    return b.graph()


@pytest.fixture(scope="module")
def lowered_graphs(front_end):
    return {key: run_passes(front_end(key)[2], CompileOptions(quant="int4")) for key in ("llama", "gemma2", "gpt_oss", "gpt2")}


def test_rendering_is_deterministic(lowered_graphs):
    for graph in lowered_graphs.values():
        assert render(graph, "int8").sources == render(graph, "int8").sources


def test_rendering_does_not_depend_on_the_order_of_hash_tables():
    """Two processes with other hash seeds render the same source: no set's order gets out."""
    program = "import sys; sys.path[:0] = sys.argv[1:]; from test_build import small; from llmc.codegen.cpu.render import render; import hashlib; print(hashlib.sha256(repr(sorted(render(small(), 'bf16').sources.items())).encode()).hexdigest())"
    folder = str(build_module.Path(__file__).parent)
    made = {
        subprocess.run(
            [sys.executable, "-c", program, folder, f"{folder}/.."],
            capture_output=True,
            text=True,
            check=True,
            env={**build_module.os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1")
    }
    assert len(made) == 1


def test_building_twice_gives_the_same_bytes_whatever_the_folder(tmp_path, monkeypatch):
    sources, made = render(small(), "f32").sources, []
    for name in ("a", "longer/name"):
        (tmp_path / name).mkdir(parents=True)
        monkeypatch.setattr(build_module.tempfile, "tempdir", str(tmp_path / name))
        made.append(build(sources, "x86-64-v3", use_cache=False))
    assert made[0] == made[1] and str(tmp_path).encode() not in made[0]


def test_the_kernel_cache_keeps_what_was_built(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_cache, "cache_folder", lambda: tmp_path / "kernels")
    sources = render(small(), "f32").sources
    first = build(sources, "x86-64-v3")
    (kept,) = (tmp_path / "kernels").iterdir()
    assert kept.read_bytes() == first
    kept.write_bytes(b"from the cache")
    assert build(sources, "x86-64-v3") == b"from the cache"
    assert build({**sources, "step.c": sources["step.c"] + "\n"}, "x86-64-v3") == first, "another source took the cached binary"


def test_code_that_does_not_compile_is_an_error_with_its_message():
    with pytest.raises(LlmcError, match="nonsense"):
        build({"step.c": "nonsense"}, "x86-64-v3", use_cache=False)


def test_a_compiler_that_is_not_there():
    with pytest.raises(EnvironmentLacks, match="no-such-compiler"):
        toolchain("no-such-compiler")


def test_buffers_that_share_a_slot_are_never_alive_together(lowered_graphs):
    for key, graph in lowered_graphs.items():
        lowered = lower(graph, "bf16")
        slots, of = lowered.slots()
        life = {}
        for i, call in enumerate(lowered.calls):
            for p in call.pointers:
                if p.kind == "buffer":
                    life[p.index] = (life.get(p.index, (i, i))[0], i)
        life[lowered.logits.id] = (life[lowered.logits.id][0], len(lowered.calls))
        for a, (a0, a1) in life.items():
            for b, (b0, b1) in life.items():
                assert a == b or of[a] != of[b] or a1 < b0 or b1 < a0, f"{key}: buffers {a} and {b}"
        assert len(slots) < len(life), f"{key}: nothing is shared"


@pytest.mark.parametrize(
    ("codes", "count"), [("abcabcabc", 1), ("xababab", 2), ("aaaa", 1), ("", 0), ("abc", 1), ("abababxcdcd", 3)]
)
def test_repeated_layers_are_found_and_nothing_is_lost(codes, count):
    found = _periods(list(codes))
    assert "".join(codes[s : s + p] * n for s, p, n in found) == codes and len(found) == count


def test_a_kernel_of_each_layer_is_one_function(lowered_graphs):
    """Two equal layers run the same code: the source does not grow with depth."""
    source = render(lowered_graphs["llama"], "f32").sources["step.c"]
    assert source.count("attend_f32(s, tid, &a)") <= 2


def test_sums_over_tokens_are_refused():
    """They would make a request depend on its neighbours in the batch."""
    b = Builder()
    x = b.table("x", np.ones((TOKENS, 8)))
    b.out("y", b.add(Pointwise("add", "f32"), x, b.add(Reduce("sum", (1,), True, "f32"), x)))
    with pytest.raises(UnsupportedError, match="neighbours"):
        lower(b.graph(), "f32")
