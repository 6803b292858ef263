"""Products of the GPU's kernels by Triton's interpreter, in a process of its own: prints for each case its distance from float64, of the
largest value, and whether its bits are those of the case's other tiles."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llmc.codegen.triton.interpreter import InterpreterDriver, interpret

interpret()

import llmc.codegen.triton as triton_folder
import ml_dtypes
import numpy as np
from llmc.runtime.drivers.driver import as_bytes

sys.path.insert(0, str(Path(__file__).parent.parent))
from words import words_of

KERNELS = Path(triton_folder.__file__).parent / "kernels"
ROWS, N, K, CHUNKS, PARTS = 40, 128, 992, 8, 2
WIDTH = 1024  # K padded
BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


class Device:
    def __init__(self) -> None:
        self.driver = InterpreterDriver({p.name: p.read_text() for p in KERNELS.glob("*.py")})

    def put(self, array: np.ndarray) -> int:
        address = self.driver.allocate(array.nbytes)
        self.driver.upload(address, as_bytes(np.ascontiguousarray(array).view(np.uint8)))
        return address

    def run(
        self,
        function: str,
        signature: list[str],
        arguments: list,
        grid: tuple[int, int, int],
        module: str = "linear",
        **constants,
    ) -> None:
        facts = {"module": module, "function": function, "signature": signature, "constants": {"OVERLAP": True, **constants}}
        given = [self.put(a) if isinstance(a, np.ndarray) else a for a in arguments]
        self.driver.launch(self.driver.load(b"", facts), grid, given)

    def get(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        out = np.empty(shape, np.float32)
        self.driver.download(address, out)
        return out


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def epilogue(gated: bool, residual: bool) -> dict:
    width = N // 2 if gated else N
    return {
        "BIAS": False,
        "RESIDUAL": residual,
        "ACT": "silu" if gated else "",
        "GATED": gated,
        "LIMIT": 0.0,
        "ALPHA": 0.0,
        "WIDTH": width,
        "LDY": width,
        "LDR": N,
    }


def fragments(count: int) -> np.ndarray:
    """Where each value of a row lies in the order of fragments: thread t of an instruction takes values 2t, 2t + 1, 2t + 8 and 2t + 9 of each 16."""
    order = [
        64 * block + 16 * i + 8 * high + 2 * t + odd for block in range(-(-count // 64)) for t in range(4) for i in range(4) for high in range(2) for odd in range(2)
    ]  # fmt: skip
    return np.argsort(order)[:count]


def main() -> None:
    device, rng = Device(), np.random.default_rng(3)
    x = rng.standard_normal((ROWS, K), np.float32).astype(BF16)
    residual = rng.standard_normal((ROWS, N), np.float32)
    found: dict[str, tuple[float, bool]] = {}

    def note(name: str, results: list[np.ndarray], wanted: np.ndarray) -> None:
        error = float(np.abs(results[0] - wanted).max() / np.abs(wanted).max())
        found[name] = (error, all(r.tobytes() == results[0].tobytes() for r in results))

    exact = x.astype(np.float64)
    for name, asymmetric, gated, group in (
        ("nibbles in chunks", False, False, 64),
        ("zeros in chunks", True, False, 32),
        ("gated in chunks", False, True, 128),
    ):
        codes = rng.integers(0, 16, (N, WIDTH))
        scales = (rng.random((WIDTH // group, N), np.float32) * 0.1).astype(np.float16)
        zeros = rng.integers(0, 16, (WIDTH // group, N)).astype(np.int16)
        words = words_of(codes).view(np.int16)
        zero = zeros.T.repeat(group, 1) if asymmetric else 8
        sums = exact @ ((codes - zero) * scales.T.astype(np.float64).repeat(group, 1))[:, :K].T
        if gated:  # 8 rows of the gate, 8 of up
            pairs = sums.reshape(ROWS, N // 16, 2, 8)
            wanted = (silu(pairs[:, :, 0]) * pairs[:, :, 1]).reshape(ROWS, -1)
        else:
            wanted = sums + residual
        ends = epilogue(gated, not gated)
        signature = ["*bf16", "*i16", "*fp16", "*i16", "*fp32", "*fp32", "*fp32", "*fp32", "i32"]
        shared = dict(
            N=N,
            K=K,
            KW=WIDTH,
            LDX=K,
            ZERO=0 if asymmetric else 8,
            GROUP=group,
            HAS_ZERO=asymmetric,
            ASM=True,
            CHUNKS=CHUNKS,
            PARTS=PARTS,
            **ends,
        )
        results = []
        for bn, bm, apart in ((64, 8, True), (32, 16, True), (64, 64, False)):
            part, y = device.driver.allocate(4 * PARTS * ROWS * N), device.put(np.zeros((ROWS, ends["WIDTH"]), np.float32))
            device.run(
                "linear_nibbles", signature, [x, words, scales, zeros, part, 0, residual, y, ROWS], (N // bn, -(-ROWS // bm), PARTS if apart else 1), BN=bn, BM=bm,
                APART=apart, UNROLL=2, STAGES=2, **shared,
            )  # fmt: skip
            if apart:
                device.run(
                    "close", ["*fp32", "*fp32", "*fp32", "*fp32", "i32"], [part, 0, residual, y, ROWS], (ROWS, 1, 1), N=N, PARTS=PARTS, BLOCK=N, **ends,
                )  # fmt: skip
            results.append(device.get(y, (ROWS, ends["WIDTH"])))
        padded = np.zeros((ROWS, WIDTH), BF16)
        padded[:, :K] = x
        width = ends["WIDTH"]
        into, out = fragments(WIDTH), fragments(width)
        for rows, x_fragments, y_fragments in (
            (1, False, False),
            (7, False, False),
            (2, True, False),
            (2, True, True),
            (1, False, True),
        ):
            given, wide = (device.put(padded[:, np.argsort(into)]), WIDTH) if x_fragments else (x, K)
            y = device.put(results[0][:, np.argsort(out)] if y_fragments else results[0])
            device.run(
                "few_nibbles", signature, [given, words, scales, zeros, 0, 0, residual, y, rows], (N // 16, 1, 1), DEPTH=2, EARLY=False, X_FRAGMENTS=x_fragments,
                Y_FRAGMENTS=y_fragments, **{**shared, "K": wide, "LDX": wide},
            )  # fmt: skip
            made = device.get(y, (ROWS, width))
            results.append(made[:, out] if y_fragments else made)
        note(name, results, wanted)

    for name, kind, dtype in (
        ("floats in tiles", "*bf16", BF16),
        ("scaled in tiles", "*fp8e4nv", E4M3),
        ("integers in tiles", "*i8", np.int8),
    ):
        w, rows = rng.standard_normal((N, K), np.float32), x.astype(np.float32)
        w, rows = ((30 * a if dtype is np.int8 else a).astype(dtype) for a in (w, rows))
        scales, row_scales = rng.random(N, np.float32), rng.random(ROWS, np.float32)
        scaled = dtype is not BF16
        wanted = rows.astype(np.float64) @ w.astype(np.float64).T
        wanted = wanted * scales[None] * row_scales[:, None] + residual if scaled else wanted + residual
        shared = dict(N=N, K=K, KW=K, LDX=K, SCALED=scaled, STAGES=2, **epilogue(False, True))
        signature = [kind, kind, "*fp32", "*fp32", "*fp32", "*fp32", "*fp32", "i32"]
        results = []
        for bn, bm, bk, programs, flat, parts in (
            (32, 8, 128, 0, False, 1),
            (64, 16, 64, 0, False, 1),
            (64, 32, 64, 2, True, 2),
            (64, 64, 128, 1, False, 1),
        ):
            y = device.put(np.zeros((ROWS, N), np.float32))
            arguments = [
                rows.view(np.uint8) if scaled else rows,
                w.view(np.uint8) if scaled else w,
                scales,
                row_scales,
                0,
                residual,
                y,
                ROWS,
            ]
            if programs:
                device.run(
                    "linear_tiles",
                    signature,
                    arguments,
                    (programs, 1, 1),
                    BN=bn,
                    BM=bm,
                    BK=bk,
                    BAND=8,
                    PROGRAMS=programs,
                    FLAT=flat,
                    PARTS=parts,
                    **shared,
                )
            else:
                device.run(
                    "linear",
                    signature,
                    arguments,
                    (N // bn, -(-ROWS // bm), 1),
                    BN=bn,
                    BM=bm,
                    BK=bk,
                    BAND=8 if bn == 64 else 0,
                    LINES=1,
                    STRIDE=2 * K,
                    THREADS=128,
                    **shared,
                )
            results.append(device.get(y, (ROWS, N)))
        note(name, results, wanted)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
