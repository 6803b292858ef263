"""The functions of vec.h against float64, on every level that this CPU runs, and bit for bit the same on all of them."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest
import torch
from llmc.codegen.cpu.render import TEMPLATES
from llmc.runtime.cpu_info import available_levels
from llmc.toolchain.c import FLAGS, LEVELS
from tolerances import ULP

HERE = tuple(name for name in available_levels() if name in LEVELS)
VECTOR = (
    "exp",
    "log",
    "sqrt",
    "sigmoid",
    "tanh",
    "erf",
    "log1p",
    "expm1",
    "silu",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "relu",
    "relu2",
    "softplus",
    "rint",
    "round_bf16",
    "abs",
)
HARNESS = (
    '#include "vec.h"\n#define EXPORT __attribute__((visibility("default")))\n'
    + "".join(
        f"EXPORT void f_{n}(const float *x, float *y, int n) {{ for (int i = 0; i < n; i += 16) store16(y + i, {n}{'16' if n != 'round_bf16' else ''}(load16(x + i))); }}\n"
        for n in VECTOR
    )
    + "EXPORT void f_sincos(const float *x, float *s, float *c, int n) { for (int i = 0; i < n; i++) sincos1(x[i], s + i, c + i); }\n"
    + "EXPORT void f_bf16_bits(const float *x, uint16_t *y, int n) { for (int i = 0; i < n; i++) y[i] = bf16_bits(x[i]); }\n"
    + "EXPORT void f_sums(const float *x, float *s, float *m, int n) { for (int i = 0; i < n; i += 16) { s[i / 16] = sum16(load16(x + i)); m[i / 16] = hmax16(load16(x + i)); } }\n"
)
EXACT = {
    "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "erf": torch.erf, "log1p": torch.log1p, "expm1": torch.expm1, "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu, "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"), "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2, "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)), "rint": torch.round, "abs": torch.abs,
}  # fmt: skip


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The harness for each level, by the flags that kernels are built with."""
    folder = tmp_path_factory.mktemp("vec")
    (folder / "harness.c").write_text(HARNESS)
    made = {}
    for level in HERE:
        out = folder / f"{level}.so"
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *LEVELS[level].zig, *FLAGS, f"-I{TEMPLATES}", "-o", str(out), "harness.c"],
            cwd=folder,
            check=True,
        )
        made[level] = ctypes.CDLL(str(out))
    return made


def call(library, name, x, outs=1, dtype=np.float32):
    x = np.ascontiguousarray(x, np.float32)
    padded = np.zeros(-(-x.size // 16) * 16, np.float32)
    padded[: x.size] = x
    results = [np.zeros(padded.size, dtype) for _ in range(outs)]
    getattr(library, f"f_{name}")(
        ctypes.c_void_p(padded.ctypes.data), *[ctypes.c_void_p(r.ctypes.data) for r in results], ctypes.c_int(padded.size)
    )
    return [r[: x.size] for r in results] if outs > 1 else results[0][: x.size]


def exact(name, x):
    return EXACT[name](torch.as_tensor(x, dtype=torch.float64)).numpy()


def wide(random, low, high, count=200_000):
    """Evenly spread, and of every size down to the smallest, both signs where the range has them."""
    even = random.uniform(low, high, count)
    small = np.exp(random.uniform(np.log(1e-38), np.log(max(abs(low), abs(high))), count)) * random.choice([-1, 1], count)
    return np.clip(np.concatenate([even, small]), low, high).astype(np.float32)


RANGES = {
    "exp": (-103.9, 88.7),
    "sigmoid": (-87, 87),
    "tanh": (-20, 20),
    "erf": (-6, 6),
    "silu": (-80, 300),
    "quick_gelu": (-3, 300),
    "softplus": (-80, 100),
    "expm1": (-20, 88),
    "log1p": (-0.999, 1e6),
}


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("name", [*RANGES, "log"])
def test_within_units_of_the_last_place(name, level, libraries, random):
    x = (
        wide(random, *RANGES[name])
        if name != "log"
        else random.integers(1, 0x7F7FFFFF, 400_000).astype(np.uint32).view(np.float32)
    )
    got, wanted = call(libraries[level], name, x).astype(np.float64), exact(name, x)
    ulp = np.abs(got - wanted) / np.spacing(np.maximum(np.abs(wanted), 1.2e-38).astype(np.float32)).astype(np.float64)
    worst = int(np.nanargmax(np.where(np.isfinite(ulp), ulp, np.inf)))
    assert ulp[worst] <= ULP[name], f"{name}({x[worst]!r}) = {got[worst]!r}, not {wanted[worst]!r}: {ulp[worst]:.1f} ulp"


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "quick_gelu"])
def test_gelu_within_the_rounding_of_its_factors(name, level, libraries, random):
    """1 + erf(x) cancels below zero, and σ multiplies the rounding of its argument, so the bound is absolute: 1.5e-7 times |x|."""
    x = wide(random, -30, 30)
    error = np.abs(call(libraries[level], name, x) - exact(name, x))
    assert (error <= 2e-7 * np.abs(x) + 1e-45).all(), x[int((error - 2e-7 * np.abs(x)).argmax())]


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("name", ["relu", "relu2", "sqrt", "abs", "rint"])
def test_exact_functions(name, level, libraries, random):
    x = wide(random, 0 if name == "sqrt" else -1e6, 1e6)
    x = np.abs(x) if name == "sqrt" else x
    wanted = exact(name, x).astype(np.float32) if name != "relu2" else np.maximum(x, 0) * np.maximum(x, 0)
    assert np.array_equal(call(libraries[level], name, x), wanted)


@pytest.mark.parametrize("level", HERE)
def test_sine_and_cosine_of_far_positions(level, libraries, random):
    x = np.concatenate([random.uniform(0, 4e6, 200_000), random.uniform(-10, 10, 100_000), np.arange(100_000)]).astype(np.float32)
    s, c = call(libraries[level], "sincos", x, outs=2)
    assert np.abs(s - np.sin(x.astype(np.float64))).max() <= 6.1e-8 and np.abs(c - np.cos(x.astype(np.float64))).max() <= 6.1e-8


@pytest.mark.parametrize("level", HERE)
def test_bfloat16_rounds_to_nearest_even(level, libraries, random):
    x = random.integers(0, 1 << 32, 400_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = np.concatenate([x[np.isfinite(x)], np.array([np.inf, -np.inf, 0.0, -0.0, 3.4e38], np.float32)])
    wanted = torch.as_tensor(x).to(torch.bfloat16)
    assert np.array_equal(call(libraries[level], "round_bf16", x).view(np.uint32), wanted.float().numpy().view(np.uint32))
    assert np.array_equal(call(libraries[level], "bf16_bits", x, dtype=np.uint16), wanted.view(torch.uint16).numpy())


@pytest.mark.parametrize("level", HERE)
def test_the_ends_of_the_line(level, libraries):
    inf, nan = np.inf, np.nan
    for name, x, wanted in (
        ("exp", [-inf, -200, 0, 88.72283, inf], [0, 0, 1, np.exp(88.72283), None]), ("log", [0, -1, inf, 1, 1e-45], [-inf, nan, inf, 0, np.log(1.401298464324817e-45)]), ("tanh", [-inf, inf, 0], [-1, 1, 0]),
        ("erf", [-inf, inf, 0], [-1, 1, 0]), ("sigmoid", [-inf, inf, 0], [0, 1, 0.5]), ("softplus", [-inf, inf, 0], [0, inf, np.log(2)]), ("silu", [-200, inf, 0], [0, inf, 0]), ("gelu", [-200, inf, 0], [0, inf, 0]),
    ):  # fmt: skip
        for value, got, want in zip(x, call(libraries[level], name, x), wanted, strict=True):
            assert want is None or np.isclose(got, want, rtol=1e-5, atol=1e-30, equal_nan=True), (name, value, got)


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("name", [n for n in VECTOR if n not in ("rint",)])
def test_nan_stays_nan(name, level, libraries):
    """A broken weight must show in the logits, not turn into a plausible number."""
    assert np.isnan(call(libraries[level], name, [np.nan, 1.0])[0])


@pytest.mark.parametrize("level", HERE)
def test_sums_and_maxima_of_lanes(level, libraries, random):
    x = random.normal(size=1600).astype(np.float32)
    s, m = call(libraries[level], "sums", x, outs=2)
    assert np.allclose(s[:100], x.reshape(-1, 16).astype(np.float64).sum(1), atol=1e-5) and np.array_equal(
        m[:100], x.reshape(-1, 16).max(1)
    )


@pytest.mark.skipif(len(HERE) < 2, reason="this CPU runs one level only")
@pytest.mark.parametrize("name", VECTOR)
def test_all_levels_give_the_same_bits(name, libraries, random):
    x = np.concatenate([wide(random, -100, 100), random.integers(0, 0x7F7FFFFF, 100_000).astype(np.uint32).view(np.float32)])
    results = {level: call(library, name, x) for level, library in libraries.items()}
    first = results[HERE[0]]
    for level, got in results.items():
        differs = (got.view(np.uint32) != first.view(np.uint32)) & ~(np.isnan(got) & np.isnan(first))
        assert not differs.any(), (level, x[differs][:5])
