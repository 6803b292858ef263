"""HIP C++ kernels, emulated on this CPU with waves of 32 and 64 lanes: numbers against float64, barriers, addresses; and code objects for AMD's chips."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from llmc.codegen.hip.build import compiled, emulation, headers, render
from llmc.codegen.hip.emulator import Emulator
from llmc.codegen.triton.elf import resources
from llmc.codegen.triton.plan import Kernel
from llmc.codegen.triton.target import TARGETS
from llmc.rebuild import check_rebuild
from llmc.runtime.api import load
from llmc.runtime.artifact import open_artifact
from words import words_of

BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
ASAN = [
    "g++",
    "-std=c++17",
    "-O1",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-sanitize=alignment",
    "-w",
]


@dataclass
class Case:
    """A launch: arrays and integers in the order of the kernel's arguments; `outputs` are the places of what it writes."""

    kernel: Kernel
    grid: tuple[int, int, int]
    arguments: list
    outputs: tuple[int, ...]
    wanted: tuple[np.ndarray, ...]
    tolerance: float = 1e-5


def kernel(function: str, signature: str, warps: int = 4, **constants) -> Kernel:
    return Kernel("hip", function, tuple(signature.split()), tuple(sorted(constants.items())), warps, source="hip")


def silu(x):
    return x * (0.5 + 0.5 * np.tanh(x / 2))


def norm_case(rng, norm: str, rounding: str, to: str, out) -> Case:
    rows, k = 3, 200
    x = rng.standard_normal((rows, k)).astype(np.float32)
    weight, bias = rng.standard_normal((2, k)).astype(np.float32)
    made = kernel(
        "norm", f"*fp32 *fp32 *fp32 *i32 {to} *fp32", K=k, HEADS=1, LDX=k, LDH=0, KPAD=k, NORM=norm, EPS=1e-5, WEIGHT=True, BIAS=norm == "layer", ORDER=False, ROUND=rounding, BLOCK=256,
    )  # fmt: skip
    v = x.astype(np.float64)
    if norm == "layer":
        v = v - v.mean(1, keepdims=True)
    v = v / np.sqrt((v**2).mean(1, keepdims=True) + 1e-5) * weight + (bias if norm == "layer" else 0)
    scales, outputs, wanted = np.zeros(rows, np.float32), (4,), (v,)
    tolerance = 1e-5 if out is np.float32 else 2**-8
    if rounding == "int8":
        most = np.abs(v).max(1)
        outputs, wanted, tolerance = (4, 5), (v * (127 / most)[:, None], most / 127), 0.51 / 127
    elif rounding:
        # int8-values: bfloat16 of the norm, of its quotient by the scale (within a quarter of a step), of the product; and half a step
        wanted, tolerance = (v,), 2**-3.5 if rounding == "fp8" else 2 * 2**-8 + 0.76 / 127.5
    return Case(made, (rows, 1, 1), [x, weight, bias, None, np.zeros((rows, k), out), scales], outputs, wanted, tolerance)


def cache_case(rng, q_norm: bool, interleaved: bool, together: int) -> Case:
    t, h, g, d, pairs, offset = 3, 4, 2, 24, 8, 4
    q, k, v = (rng.standard_normal((t, n, d)).astype(np.float32) for n in (h, g, g))
    angles = rng.standard_normal((t, pairs))
    table = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    weight = rng.standard_normal(d).astype(np.float32)
    slots = np.array([5, 0, 2], np.int32)

    def turned(x, norm):
        x = x.astype(np.float64)
        if norm:
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight
        y = x.copy()
        at = offset + np.arange(pairs) * (2 if interleaved else 1)
        other = at + (1 if interleaved else pairs)
        cos, sin = table[:, None, 0], table[:, None, 1]
        y[..., at], y[..., other] = x[..., at] * cos - x[..., other] * sin, x[..., other] * cos + x[..., at] * sin
        return y

    made = kernel(
        "write_cache", "*fp32 *fp32 *fp32 *fp32 *fp32 *fp32 *i32 *bf16 *bf16 *bf16", 4 if together > 1 else 1, H=h, G=g, DK=d, DV=d, LDQ=h * d, LDQH=d, LDK=g * d, LDKH=d,
        LDV=g * d, LDVH=d, Q_NORM=q_norm, K_NORM=False, EPS=1e-6, PAIRS=pairs, OFFSET=offset, INTERLEAVED=interleaved, BLOCK=32, HEADS=together,
    )  # fmt: skip
    k_cache, v_cache = np.zeros((8, g, d)), np.zeros((8, g, d))
    k_cache[slots], v_cache[slots] = turned(k, False), v
    caches = [np.zeros((8, g, d), BF16) for _ in range(2)]
    arguments = [q, k, v, table, weight, weight, slots, np.zeros((t, h, d), BF16), *caches]
    return Case(made, (t, (h + 2 * g) // together, 1), arguments, (7, 8, 9), (turned(q, q_norm), k_cache, v_cache), 2**-8)


def largest_cases(rng) -> list[Case]:
    rows, vocabulary, parts = np.array([2, 0], np.int32), 1000, 64
    x = rng.standard_normal((3, vocabulary)).astype(np.float32)
    x[2, 17] = x[2, 900] = 9.0  # the first of equals
    size = -(-vocabulary // parts)
    part = np.full((2, parts, 2), -np.inf)
    for i, row in enumerate(rows):
        for p in range(parts):
            held = x[row, p * size : (p + 1) * size]
            part[i, p] = (held.max(), p * size + held.argmax()) if held.size else (-np.inf, p * size)
    one = kernel("largest", "*fp32 *i32 *fp32", V=vocabulary, PARTS=parts, BLOCK=1024)
    two = kernel("argmax", "*fp32 *i32", 1, PARTS=parts)
    return [
        Case(one, (2, parts, 1), [x, rows, np.zeros((2, parts, 2), np.float32)], (2,), (part,), 0.0),
        Case(two, (2, 1, 1), [part.astype(np.float32), np.zeros(2, np.int32)], (1,), (x[rows].argmax(1),), 0.0),
    ]


def draw_case(rng) -> Case:
    rows, vocabulary = 20, 999
    x = (3 * rng.standard_normal((3, vocabulary))).astype(np.float32)
    settings = [(1.0, 1.0, 0.0, 0), (0.7, 0.9, 0.0, 0), (1.3, 1.0, 0.1, 20), (0.9, 0.5, 0.0, 7)]
    whole, real, wanted = np.zeros((rows, 2), np.int32), np.zeros((rows, 4), np.float32), np.zeros(rows)
    for i in range(rows):
        temperature, top_p, min_p, top_k = settings[i % len(settings)]
        v = x[i % 3].astype(np.float64)
        weights = np.exp((v - v.max()) / temperature)
        ranked = np.argsort(-v)[: top_k or vocabulary]
        before = np.cumsum(weights[ranked]) - weights[ranked]
        kept = np.sort(ranked[(before < top_p * weights[ranked].sum()) & (weights[ranked] >= min_p)])
        likely = kept[weights[kept] > 1e-3 * weights[kept].sum()]
        wanted[i] = rng.choice(likely)  # by a number in the middle of what this token has
        ends = np.cumsum(weights[kept]) / weights[kept].sum()
        at = np.searchsorted(kept, wanted[i])
        whole[i] = i % 3, top_k or vocabulary
        real[i] = 1 / temperature, top_p, min_p, (ends[at] + (ends[at - 1] if at else 0)) / 2
    made = kernel("draw", "*fp32 *i32 *fp32 *i32", V=vocabulary, BLOCK=1024)
    return Case(made, (rows, 1, 1), [x, whole, real, np.zeros(rows, np.int32)], (3,), (wanted,), 0.0)


def gemv_cases(rng) -> list[Case]:
    rows, n, k, width = 5, 48, 100, 128
    finish = {"BIAS": True, "ACT": "silu", "LIMIT": 0.0, "ALPHA": 0.0, "BN": 16, "BM": 4, "N": n, "K": k}
    x = rng.standard_normal((rows, k)).astype(BF16)
    wide = x.astype(np.float64)
    bias = rng.standard_normal(n).astype(np.float32)
    residual = rng.standard_normal((rows, n)).astype(np.float32)
    plain = {**finish, "GATED": False, "WIDTH": n, "LDX": k, "LDY": n, "LDR": n, "RESIDUAL": True}
    w = np.zeros((n, width), BF16)
    w[:, :k] = rng.standard_normal((n, k)).astype(BF16)
    grid = (n // 16, 2, 1)

    def out(columns: int = n) -> np.ndarray:
        return np.zeros((rows, columns), np.float32)

    made = [
        Case(
            kernel("gemv", "*bf16 *bf16 *fp32 *fp32 *fp32 *fp32 *fp32 i32", KW=width, EACH=8, SCALED=False, **plain),
            grid, [x, w, None, None, bias, residual, out(), rows], (6,), (silu(wide @ w[:, :k].astype(np.float64).T + bias) + residual,),
        )
    ]  # fmt: skip
    gated = {**finish, "GATED": True, "WIDTH": n // 2, "LDX": k, "LDY": n // 2, "LDR": 0, "RESIDUAL": False, "BIAS": False}
    sums = wide @ w[:, :k].astype(np.float64).T
    gate, up = (sums.reshape(rows, n // 16, 2, 8)[:, :, i].reshape(rows, -1) for i in (0, 1))
    made.append(
        Case(
            kernel("gemv", "*bf16 *bf16 *fp32 *fp32 *fp32 *fp32 *fp32 i32", KW=width, EACH=8, SCALED=False, **gated),
            grid, [x, w, None, None, None, None, out(n // 2), rows], (6,), (silu(gate) * up,),
        )
    )  # fmt: skip
    codes, groups = rng.integers(0, 256, (n, 128), dtype=np.uint8), 4
    scales = rng.random((n, groups)).astype(np.float16)
    zeros = rng.integers(0, 256, (n, groups), dtype=np.uint8)
    values = (codes.astype(np.float64) - np.repeat(zeros, 32, 1)) * np.repeat(scales.astype(np.float64), 32, 1)
    stored = {"KIND": "int", "BITS": 8, "SPAN": 32, "KW": 128}
    made.append(
        Case(
            kernel("gemv_coded", "*bf16 *u8 *fp16 *u8 *fp32 *fp32 *fp32 *fp32 *fp32 *fp32 i32", ZERO=0, GROUP=32, GROUPS=groups, HAS_ZERO=True, INT8=False, **stored, **plain),
            grid, [x, codes, scales, zeros, None, None, None, bias, residual, out(), rows], (9,), (silu(wide @ values[:, :k].T + bias) + residual,),
        )
    )  # fmt: skip
    x8, xscale = rng.integers(-127, 128, (rows, k)).astype(np.int8), rng.random(rows).astype(np.float32)
    one = rng.random((n, 1)).astype(np.float32)
    exact = (x8.astype(np.float64) @ (codes[:, :k].astype(np.float64) - 128).T) * one[:, 0] * xscale[:, None]
    made.append(
        Case(
            kernel("gemv_coded", "*i8 *u8 *fp32 *u8 *fp32 *fp32 *fp32 *fp32 *fp32 *fp32 i32", ZERO=128, GROUP=128, GROUPS=1, HAS_ZERO=False, INT8=True, **stored, **{**plain, "ACT": ""}),
            grid, [x8, codes, one, None, None, xscale, None, bias, residual, out(), rows], (9,), (exact + bias + residual,),
        )
    )  # fmt: skip
    padded = 256  # KW
    nibbles = rng.integers(0, 16, (n, padded))
    blocks = words_of(nibbles)
    s4 = rng.random((padded // 32, n)).astype(np.float16)
    v4 = (nibbles - 8) * np.repeat(s4.astype(np.float64), 32, 0).T
    signature = "*bf16 *i16 *fp16 *i16 *fp32 *fp32 *fp32 *fp32 i32"
    four = {"KW": padded, "ZERO": 8, "GROUP": 32, "HAS_ZERO": False, "CHUNKS": 2}
    made.append(
        Case(
            kernel("gemv_nibbles", signature, APART=False, **four, **plain),
            grid, [x, blocks, s4, None, None, bias, residual, out(), rows], (7,), (silu(wide @ v4[:, :k].T + bias) + residual,),
        )
    )  # fmt: skip
    halves = np.stack([wide[:, :k] @ v4[:, :k].T, np.zeros((rows, n))])  # K ends in the first chunk
    made.append(
        Case(
            kernel("gemv_nibbles", signature, APART=True, **four, **plain),
            (n // 16, 2, 2), [x, blocks, s4, None, np.ones((2, rows, n), np.float32), bias, residual, out(), rows], (4,), (halves,),
        )
    )  # fmt: skip
    return made


def attend_case(rng, window: int, softcap: float) -> Case:
    h, g, d, split, page, splits = 4, 2, 16, 256, 32, 2
    at = 300  # one token, which sees positions up to it
    q = rng.standard_normal((1, h, d)).astype(np.float32)
    table = rng.permutation(12).astype(np.int32)[None, :10].copy()
    k_cache, v_cache = (rng.standard_normal((12 * page, g, d)).astype(np.float32) for _ in range(2))
    slots = [table[0, p // page] * page + p % page for p in range(at + 1)]
    scale = 0.3
    score = np.einsum("hd,phd->hp", q[0].astype(np.float64), k_cache[slots].repeat(h // g, 1)) * scale
    if softcap:
        score = softcap * np.tanh(score / softcap)
    low = max(0, at + 1 - window) if window else 0
    score[:, :low] = -np.inf
    score /= np.log(2)
    part = np.zeros((1, h, splits, d + 2))
    for z in range(splits):
        held = slice(z * split, min((z + 1) * split, at + 1))
        most = score[:, held].max(1)
        e = np.exp2(score[:, held] - most[:, None])
        part[0, :, z, 0], part[0, :, z, 1] = most, e.sum(1)
        part[0, :, z, 2:] = np.einsum("hp,phd->hd", e, v_cache[slots[held]].repeat(h // g, 1).astype(np.float64))
    made = kernel(
        "attend_split", "*fp32 *fp32 *fp32 *fp32 *fp32 *i32 *i32 *i32 *i32 *fp32 *fp32 i32", H=h, G=g, DK=d, DV=d, DVP=d, SCALE=scale, SOFTCAP=softcap, WINDOW=window, CHUNK=0,
        SLOPES=False, SPLIT=split, PAGE=page, ROWS=h // g, CHANNELS=16,
    )  # fmt: skip
    tiles, starts, positions = np.zeros((1, 2), np.int32), np.array([0, 1], np.int32), np.array([at], np.int32)
    arguments = [q, k_cache, v_cache, None, None, tiles, starts, positions, table, np.zeros(part.shape, np.float32), None, 10]
    return Case(made, (g, 1, splits), arguments, (9,), (part,))


def cases(rng: np.random.Generator) -> list[Case]:
    return [
        norm_case(rng, "rms", "", "*fp32", np.float32), norm_case(rng, "layer", "", "*bf16", BF16), norm_case(rng, "rms", "int8", "*i8", np.int8),
        norm_case(rng, "rms", "fp8", "*bf16", BF16), norm_case(rng, "rms", "int8-values", "*bf16", BF16),
        cache_case(rng, True, False, 4), cache_case(rng, False, True, 1), *largest_cases(rng), draw_case(rng), *gemv_cases(rng),
        attend_case(rng, 0, 0.0), attend_case(rng, 200, 5.0),
    ]  # fmt: skip


def sources(held: list[Case]) -> dict[str, str]:
    return {**headers(), **{f"{c.kernel.name}.hip": render(c.kernel) for c in held}}


@pytest.mark.parametrize("wave", [32, 64])
def test_emulated_kernels_compute_what_numpy_does_in_float64(wave, random):
    held = cases(random)
    emulator = Emulator(sources(held), wave)
    for case in held:
        given = [a if isinstance(a, int) else 0 if a is None else a.ctypes.data for a in case.arguments]
        emulator.launch({"symbol": case.kernel.name}, case.grid, given)
        for place, wanted in zip(case.outputs, case.wanted, strict=True):
            got = case.arguments[place].astype(np.float64)
            finite = np.isfinite(wanted)
            assert np.array_equal(np.isfinite(got), finite), case.kernel.function
            error = np.abs(got[finite] - wanted[finite]).max() / max(1e-30, np.abs(wanted[finite]).max())
            assert error <= case.tolerance, (case.kernel.function, dict(case.kernel.constants), place, error)
    emulator.close()


def test_codes_of_8_bit_floats_are_those_of_ml_dtypes(random):
    case = norm_case(random, "rms", "fp8-codes", "*fp8e4nv", E4M3)
    emulator = Emulator(sources([case]), 64)
    emulator.launch({"symbol": case.kernel.name}, case.grid, [0 if a is None else a.ctypes.data for a in case.arguments])
    codes, scales = case.arguments[4], case.arguments[5]
    values = case.wanted[0].astype(np.float32)
    rounded = lambda x: x.astype(BF16).astype(np.float32)  # noqa: E731
    low, high = (rounded(rounded(np.abs(values).max(1) * np.float32(1 + e)) / 448) for e in (-1e-6, 1e-6))
    assert np.array_equal(scales, rounded(scales)) and (low <= scales).all() and (scales <= high).all()
    exact = rounded(rounded(values) / scales[:, None]).clip(-448, 448).astype(E4M3)
    assert (codes.view(np.uint8) == exact.view(np.uint8)).mean() > 0.98  # the norm's own last bit may move a tie
    assert np.abs(codes.astype(np.float32) - exact.astype(np.float32)).max() <= 32


def test_no_kernel_leaves_its_buffers(random, tmp_path):
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, every buffer of its exact size, in an executable of its own."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ for its sanitizers")
    held = cases(random)
    texts = sources(held)
    names = "".join(f'extern "C" void emulate_{c.kernel.name}(const int *, void **);\n' for c in held)
    body = []
    for c in held:
        lines = ["{", f"void *p[{len(c.arguments)}]; u64 v[{len(c.arguments)}] = {{}};"]
        for i, a in enumerate(c.arguments):
            if isinstance(a, np.ndarray):
                lines.append(f"v[{i}] = (u64)take(data, {a.nbytes});")
            else:
                lines.append(f"v[{i}] = {a or 0};")
            lines.append(f"p[{i}] = &v[{i}];")
        lines += [f"int size[3] = {{{', '.join(map(str, c.grid))}}};", f"emulate_{c.kernel.name}(size, p);"]
        lines += [f"free((void *)v[{i}]);" for i, a in enumerate(c.arguments) if isinstance(a, np.ndarray)]
        body.append("\n".join([*lines, "}"]))
    take = "static void *take(FILE *f, size_t n) { void *p = malloc(n); if (fread(p, 1, n, f) != n) exit(3); return p; }"
    main = 'int main(int, char **argv) { FILE *data = fopen(argv[1], "rb");\n' + "\n".join(body) + "\nreturn 0; }\n"
    for name, text in {**texts, "main.cpp": f"{emulation(texts)}\n{names}{take}\n{main}"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "data").write_bytes(b"".join(a.tobytes() for c in held for a in c.arguments if isinstance(a, np.ndarray)))
    built = subprocess.run([*ASAN, "-DWAVE=64", "main.cpp", "-o", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    ran = subprocess.run(
        ["./run", "data"], cwd=tmp_path, capture_output=True, text=True, env={"ASAN_OPTIONS": "detect_stack_use_after_return=0"}
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_a_barrier_that_some_never_reach_is_found():
    source = "KERNEL(64) bad(int *x) { if (thread() < 9) meet(); *x = 1; }\nEMULATED(bad, 64, argument{p[0]})\n"
    program = f"""
import ctypes, numpy
from llmc.codegen.hip.build import headers
from llmc.codegen.hip.emulator import Emulator
emulator = Emulator({{**headers(), "bad.hip": {('#include "gpu.h"' + chr(10) + source)!r}}}, 64)
x = numpy.zeros(1, numpy.int32)
emulator.launch({{"symbol": "bad"}}, (1, 1, 1), [x.ctypes.data])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -6 and "a barrier that" in done.stderr, (done.returncode, done.stderr[-500:])


@pytest.mark.parametrize("target", [name for name in TARGETS if name.startswith("rocm")])
def test_code_objects_for_every_chip_are_the_same_bytes_in_any_folder(target, random, tmp_path, monkeypatch):
    kernels = list({c.kernel.name: c.kernel for c in cases(random)}.values())
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
        made.append(compiled(kernels, TARGETS[target], use_cache=False))
    for k in kernels:
        binary, facts = made[0][k.name]
        assert binary == made[1][k.name][0] and str(tmp_path).encode() not in binary
        found = resources(binary, facts["symbol"])
        assert 0 < found["registers"] <= 128 and found["lds"] <= TARGETS[target].shared_bytes, (k.function, found)


@pytest.mark.parametrize(("target", "quant"), [("rocm:gfx942", "int4:g32"), ("rocm:gfx1201", "int8:channel/bf16")])
def test_few_rows_by_kernels_of_their_own(target, quant, checkpoint, artifact, random, tmp_path):
    """--fast-nondeterministic: what the CPU computes; a prompt in pieces gives nearly, not exactly, the same."""
    options = {"quant": quant, "dtype": "bf16", "fast_nondeterministic": True}
    path = artifact(checkpoint("llama"), target=("cpu:native", target), **options)
    out = tmp_path / "out.npz"
    worker = Path(__file__).with_name("interpreter_worker.py")
    seed = str(int(random.integers(1 << 30)))
    done = subprocess.run([sys.executable, worker, path, target, out, seed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    got = np.load(out)
    with load(path, target="cpu") as model:
        wanted = model.logits(got["ids"].tolist())
        notes = model.artifact.manifest["notes"]
        entry = next(t for t in model.artifact.manifest["targets"] if t["name"] == target)
    for logits in (got["prefill"], got["pieces"]):
        assert np.abs(logits - wanted).max() < 2e-2 * np.abs(wanted).max()
    assert any("--fast-nondeterministic" in note for note in notes)
    written = {k["kernel"] for k in entry["kernels"] if k["source"] == "hip"}
    assert written >= {"norm", "write_cache", "largest", "argmax", "attend_split"} and any(k.startswith("gemv") for k in written)
    with open_artifact(path) as opened:
        assert all(c.ok for c in check_rebuild(opened))
        json.loads(opened.read(entry["member"]))
