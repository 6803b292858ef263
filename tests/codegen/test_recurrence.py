"""Layers with a state against their float64 reference, at odd sizes, whole and in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from llmc.compiler.ir.ops.causal_conv import CausalConv
from llmc.compiler.ir.ops.recurrence import Recurrence
from llmc.compiler.ir.ops.view import View
from llmc.compiler.ir.reference import Context
from llmc.runtime.executors.cpu import Batch
from tiny_graphs import TOKENS, Builder, Program

IDS = np.random.default_rng(3).integers(0, TOKENS, 37)

CASES = {
    "mamba 1": {"heads": 35, "groups": 1, "keys": 7, "values": 1, "rates": True},
    "rg-lru": {"heads": 21, "groups": 1, "keys": 1, "values": 1},
    "mamba 2": {"heads": 6, "groups": 2, "keys": 19, "values": 40},
    "one column a head, several groups": {"heads": 4, "groups": 2, "keys": 5, "values": 1},
    "gated delta": {"heads": 4, "groups": 2, "keys": 16, "values": 17, "delta": True},
    "kda": {"heads": 3, "groups": 3, "keys": 21, "values": 33, "delta": True, "per_key": True},
    "rates and columns": {"heads": 3, "groups": 1, "keys": 6, "values": 16, "rates": True, "delta": True},
}


def reference(op, tensors, ids):
    """The op's own reference in float64; `tensors` are tables [TOKENS, …] of its activations, and its weights."""
    inputs = [torch.as_tensor(t)[ids][None].double() if moves else torch.as_tensor(t).double() for t, moves in tensors]
    (out,) = op.reference(Context.single(len(ids), wide=torch.float64), *inputs)
    return out[0].reshape(len(ids), -1).numpy()


def in_pieces(program, ids, sizes):
    """The same tokens in steps of these sizes, beside another sequence that begins with each step."""
    got, at = [], 0
    for size in sizes:
        part = np.asarray(ids[at : at + size], np.int32)
        other = np.asarray(IDS[: 1 + at % 3], np.int32)
        n, m = part.size, other.size
        program.executor.run(
            Batch(
                np.concatenate([part, other]),
                np.concatenate([np.arange(at, at + n), np.arange(m)]).astype(np.int32),
                np.array([0, n, n + m], np.int32),
                np.array([at, 0], np.int32),
                np.stack([np.arange(8), np.arange(8, 16)]).astype(np.int32)[None],
                np.arange(n, dtype=np.int32),
                np.array([1, 0], np.int32),
            )
        )
        got.append(program.executor.logits(n).copy())
        at += size
    assert at == len(ids)
    return np.concatenate(got)


def check(builder, tmp_path, wanted, tolerance):
    program = Program(builder, tmp_path)
    try:
        got = program.run(IDS)["out"]
        assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()
        pieces = [
            in_pieces(program, IDS, sizes)[:, program.columns["out"]] for sizes in ([1] * 37, [2, 1, 30, 4], [5, 32], [36, 1])
        ]
        assert all(p.tobytes() == got.tobytes() for p in pieces)
        program.executor.copy_state(1, 0)
        whole = program.run(IDS)["out"]
        assert whole.tobytes() == got.tobytes(), "position 0 starts anew, whatever lies in the slot"
    finally:
        program.close()


@pytest.mark.parametrize("name", CASES)
def test_recurrence(name, tmp_path, random):
    case = {"rates": False, "delta": False, "per_key": False} | CASES[name]
    heads, groups, keys, values = (case[k] for k in ("heads", "groups", "keys", "values"))
    op, builder, tensors, inputs = Recurrence(case["rates"], case["delta"]), Builder(), [], []

    def activation(label, shape, data):
        tensors.append((data.reshape(TOKENS, *shape), True))
        flat = builder.table(label, data.reshape(TOKENS, -1))
        inputs.append(builder.add(View(",".join(map(str, ("1", "T", *shape)))), flat))

    for label, shape in (("q", (groups, keys)), ("k", (groups, keys)), ("v", (heads, values))):
        data = random.normal(size=(TOKENS, *shape)).astype(np.float32)
        activation(label, shape, data / (np.linalg.norm(data, axis=-1, keepdims=True) if case["delta"] and label == "k" else 1))
    activation(
        "g",
        (heads, keys) if case["per_key"] else (heads,),
        -random.exponential(size=(TOKENS, heads, keys if case["per_key"] else 1)).astype(np.float32),
    )
    if case["rates"]:
        rates = random.exponential(size=(keys, heads)).astype(np.float32)
        tensors.append((rates, False))
        inputs.append(builder.param("rates", rates))
    if case["delta"]:
        activation("beta", (heads,), random.uniform(0, 1, size=(TOKENS, heads)).astype(np.float32))
    out = builder.add(op, *inputs)
    builder.out("out", builder.add(View(f"1,T,{heads * values}"), out))
    check(builder, tmp_path, reference(op, tensors, IDS), 3e-6)


@pytest.mark.parametrize(
    ("channels", "taps", "bias"), [(70, 4, True), (16, 2, False), (5, 3, True), (130, 1, False), (64, 8, True)]
)
def test_causal_conv(channels, taps, bias, tmp_path, random):
    x, weight, shift = (random.normal(size=s).astype(np.float32) for s in ((TOKENS, channels), (channels, taps), channels))
    builder = Builder()
    operands = [builder.table("x", x), builder.param("w", weight), *([builder.param("b", shift)] if bias else [])]
    builder.out("out", builder.add(CausalConv(bias), *operands))
    wanted = reference(CausalConv(bias), [(x, True), (weight, False), *([(shift, False)] if bias else [])], IDS)
    padded = np.concatenate([np.zeros((taps - 1, channels)), x[IDS]])
    by_hand = sum(padded[j : j + len(IDS)] * weight[:, j] for j in range(taps)) + (shift if bias else 0)
    assert np.allclose(wanted, by_hand, atol=1e-9)
    check(builder, tmp_path, wanted, 1e-6)
