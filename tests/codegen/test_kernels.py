"""Kernels against float64 on fresh random inputs, at odd sizes: every scheme, every fusion, every number of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from llmc.compiler.ir.ops.cast import Cast
from llmc.compiler.ir.ops.experts import Experts
from llmc.compiler.ir.ops.fused_attention import FusedAttention
from llmc.compiler.ir.ops.head_linear import HeadLinear
from llmc.compiler.ir.ops.indexer import Indexer
from llmc.compiler.ir.ops.linear import Linear
from llmc.compiler.ir.ops.pointwise import ACTIVATIONS, UNARY
from llmc.compiler.ir.ops.rope_table import RopeTable
from llmc.compiler.ir.ops.topk import Topk
from llmc.compiler.ir.ops.view import View
from llmc.compiler.ir.reference import Context
from llmc.quant.algorithms.rtn import quantize
from llmc.quant.scheme import parse_scheme
from tiny_graphs import TOKENS, Builder, Program
from tolerances import PRODUCT

ROWS = (1, 2, 3, 5, 17, 70)
SIZES = [(33, 7), (33, 48), (64, 130), (100, 48), (100, 7), (576, 130), (1152, 48)]
FAMILIES = {
    "floats": ["f32", "f16", "bf16/f32", "bf16/bf16", "f32/bf16"],
    "int8": ["int8:channel/int8", "int8:channel/bf16", "int8:g64/int8", "int8:g32/bf16", "int8:channel/f32"],
    "int4 symmetric": [f"int4:{g}/{a}" for g in ("g32", "g64", "g128", "channel") for a in ("bf16", "int8")],
    "few bits": [f"int{b}:{g}{z}/bf16" for b in (2, 3, 5, 6) for g, z in (("g16", ""), ("g32", ":asym"), ("channel", ""))],
    "8 bits with zero points": ["int8:g32:asym/bf16", "int8:channel:asym/bf16", "int8:g16:asym/f32"],
    "fp8": [f"fp8_{kind}:{g}/bf16" for kind in ("e4m3", "e5m2") for g in ("channel", "tensor", "block128", "g32")],
    "four-bit floats": ["mxfp4/bf16", "mxfp8/bf16", "nvfp4/bf16", "nf4:g64/bf16", "nf4:g32/f32"],
    "other scales": [
        f"{s}/{a}" for s in ("int4:g32:scale-int8", "int4:g64:asym:scale-bf16", "int8:g32:scale-f32") for a in ("bf16", "int8")
    ]
    + ["int3:g32:asym:scale-int8/bf16", "int2:g16:scale-bf16/bf16", "nf4:g64:scale-int8/bf16", "fp8_e4m3:g32:scale-f32/bf16"],
    "int4 asymmetric": [f"int4:{g}:asym/{a}" for g in ("g32", "g64", "g128", "channel") for a in ("bf16", "int8")],
}


def bf16(x):
    return torch.as_tensor(x, dtype=torch.float32).to(torch.bfloat16).double().numpy()


def stored(weight, scheme):
    """The values that the packed weight stands for, float64."""
    tensor = torch.as_tensor(weight, dtype=torch.float32)
    if scheme.is_coded:
        return quantize(tensor, scheme).dequantize(scheme).double().numpy()
    return tensor.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[scheme.kind]).double().numpy()


def rounded(x, scheme):
    """Activations as the product takes them; the arithmetic of int8 codes is float32's."""
    if scheme.activations == "bf16":
        return bf16(x)
    if scheme.activations == "int8":
        x = np.asarray(x, np.float32)
        most = np.abs(x).max(-1, keepdims=True)
        codes = np.rint(x * (np.float32(127) / most))
        return codes.astype(np.float64) * (most / np.float32(127)).astype(np.float64)
    return np.asarray(x, np.float64)


def act(name, x):
    return UNARY[name](torch.as_tensor(x)).numpy() if name else x


class Case:
    """One linear: its operands, and its value in float64."""

    def __init__(self, random, text, k, n, **fields):
        self.scheme, self.fields = parse_scheme(text), fields
        self.x = random.normal(size=(TOKENS, k)).astype(np.float32) * random.uniform(0.1, 10, (TOKENS, 1)).astype(np.float32)
        self.w = (random.normal(size=(n, k)) * np.exp(random.normal(size=(n, 1)))).astype(np.float32)
        width = n // 2 if fields.get("gated") else n
        vectors = {"norm_weight": k, "norm_bias": k, "bias": n}
        self.operands = {name: random.normal(size=size).astype(np.float32) for name, size in vectors.items() if fields.get(name)}
        if fields.get("residual"):
            self.operands["residual"] = random.normal(size=(TOKENS, width)).astype(np.float32)

    def build(self, b, name):
        op = Linear(scheme=str(self.scheme), **self.fields)
        x = b.table(f"{name}.x", self.x)
        extra = [b.table(f"{name}.{n}", v) if n == "residual" else b.param(f"{name}.{n}", v) for n, v in self.operands.items()]
        b.out(name, b.add(op, x, b.param(f"{name}.w", self.w), *extra))

    def expected(self, tokens):
        """(value, size of what was summed) in float64."""
        x = self.x[tokens].astype(np.float64)
        norm, eps = self.fields.get("norm", ""), self.fields.get("eps", 0.0)
        if norm:
            x = x - x.mean(-1, keepdims=True) if norm == "layer" else x
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
            x = x * self.operands.get("norm_weight", 1.0) + self.operands.get("norm_bias", 0.0)
        x, w = rounded(x, self.scheme), stored(self.w, self.scheme)
        y, size = x @ w.T, np.abs(x) @ np.abs(w).T
        if self.scheme.asymmetric and self.scheme.activations != "int8":
            codes = quantize(torch.as_tensor(self.w), self.scheme)
            top = (
                (codes.scales.abs() * ((1 << self.scheme.bits) - 1)).amax(-1).double().numpy()
            )  # codes and zero points are summed apart, each up to the largest code in scales
            size = size + np.abs(x).sum(-1, keepdims=True) * top
        if "bias" in self.operands:
            y = y + self.operands["bias"]
        if self.fields.get("gated"):
            g, u = np.split(y, 2, -1)
            sg, su = np.split(size, 2, -1)
            y, size = act(self.fields["act"], g) * u, 1.2 * sg * np.abs(u) + su * np.abs(act(self.fields["act"], g)) + 1
        else:
            y, size = act(self.fields.get("act", ""), y), 1.2 * size + 1
            if self.fields.get("act") == "relu2":
                size = size * (1 + 2 * np.sqrt(np.abs(y)))
        return y + (self.operands["residual"][tokens] if "residual" in self.operands else 0), size

    @property
    def bound(self):
        return PRODUCT[
            f"norm/{self.scheme.activations}" if self.fields.get("norm") and self.scheme.activations in ("bf16", "int8") else ""
        ]


HEAD_SCHEMES = ("f32", "f16", "bf16/bf16", "int4:g32:asym/bf16", "int8:channel/bf16", "int3:g16/bf16", "fp8_e4m3:channel/bf16", "nf4:g64:scale-int8/bf16")  # fmt: skip


@pytest.mark.parametrize("heads", [1, 5])
def test_products_by_head(heads, random, tmp_path):
    """Each head's rows times its own weight, in float64; the same bits for any number of rows."""
    cases = {}
    b = Builder()
    for text in HEAD_SCHEMES:
        for k, n in ((24, 40), (64, 7), (160, 48)):
            scheme, name = parse_scheme(text), f"{text} {k} {n}".replace(" ", "_").replace(":", "_")
            x = random.normal(size=(TOKENS, heads * k)).astype(np.float32)
            w = random.normal(size=(heads, n, k)).astype(np.float32)
            split = b.add(View(f"1,T,{heads},{k}"), b.table(f"{name}.x", x))
            y = b.add(HeadLinear(text), split, b.param(f"{name}.w", w))
            b.out(name, b.add(View(f"1,T,{heads * n}"), y))
            cases[name] = (scheme, x.reshape(TOKENS, heads, k), w)
    program = Program(b, tmp_path)
    whole = program.run(list(range(TOKENS)))
    for name, (scheme, x, w) in cases.items():
        weights = np.stack([stored(m, scheme) for m in w])
        given = rounded(x, scheme)
        wanted, size = np.einsum("thk,hnk->thn", given, weights), np.einsum("thk,hnk->thn", np.abs(given), np.abs(weights))
        if scheme.asymmetric:
            top = np.stack(
                [np.abs(quantize(torch.as_tensor(m), scheme).scales.numpy()).max(-1) * ((1 << scheme.bits) - 1) for m in w]
            )
            size = size + np.abs(given).sum(-1)[:, :, None] * top[None]
        got = whole[name].reshape(wanted.shape)
        assert (np.abs(got - wanted) <= PRODUCT[""] * (1.2 * size + 1)).all(), name
    for rows in (1, 3, 6):
        part = program.run(list(range(rows)))
        assert all(np.array_equal(part[name], whole[name][:rows]) for name in cases)
    program.close()


VARIANTS = {
    "plain": {},
    "bias": {"bias": True},
    "residual": {"residual": True, "bias": True},
    "rms": {"norm": "rms", "eps": 1e-5, "norm_weight": True},
    "rms unweighted": {"norm": "rms", "eps": 1e-6},
    "layer": {"norm": "layer", "eps": 1e-5, "norm_weight": True, "norm_bias": True, "bias": True},
    "gated": {"act": "silu", "gated": True},
    "gated with all": {
        "act": "gelu_tanh",
        "gated": True,
        "bias": True,
        "residual": True,
        "norm": "rms",
        "eps": 1e-5,
        "norm_weight": True,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_products_of_every_scheme_size_and_number_of_rows(family, tmp_path, random):
    """All sizes plain, all fusions at one odd size, in one program; every number of rows, the order of tokens shuffled."""
    b, cases = Builder(), {}
    for text in FAMILIES[family]:
        for k, n in SIZES:
            cases[f"{text} {k}x{n}"] = Case(random, text, k, n)
        for variant, fields in VARIANTS.items():
            cases[f"{text} {variant}"] = Case(random, text, 100, 74, **fields)
            if fields.get("gated"):
                cases[f"{text} {variant} wide"] = Case(random, text, 192, 2 * 48, **fields)
    for name, case in cases.items():
        case.build(b, name.replace(" ", "_").replace(":", "_"))
    program = Program(b, tmp_path)
    failures = []
    for count in ROWS:
        tokens = random.permutation(TOKENS)[:count]
        got = program.run(tokens)
        for name, case in cases.items():
            y, size = case.expected(tokens)
            error = np.abs(got[name.replace(" ", "_").replace(":", "_")] - y) / size
            if not (np.isfinite(error).all() and error.max() <= case.bound):
                failures.append(f"{name}, {count} rows: {error.max():.3g} > {case.bound}")
    program.close()
    assert not failures, "\n".join(failures[:30])


def test_every_activation(tmp_path, random):
    b, cases = Builder(), {name: Case(random, "f32", 33, 40, act=name) for name in ACTIVATIONS}
    for name, case in cases.items():
        case.build(b, name)
    program = Program(b, tmp_path)
    got = program.run(np.arange(TOKENS))
    for name, case in cases.items():
        y, size = case.expected(np.arange(TOKENS))
        assert (np.abs(got[name] - y) / size).max() <= PRODUCT[""], name
    program.close()


@pytest.mark.parametrize(
    "text", ["f32", "bf16/bf16", "f16", "int4:g32/bf16", "int4:g64:asym/bf16", "int8:channel/bf16", "int4:channel/bf16"]
)
def test_experts(text, tmp_path, random):
    """Tokens spread over experts unevenly; each token's sum over its experts against float64."""
    scheme, E, K, F, J = parse_scheme(text), 5, 70, 44, 2
    b, x = Builder(), random.normal(size=(TOKENS, K)).astype(np.float32)
    scores = random.normal(size=(TOKENS, E)).astype(np.float32) + np.arange(E, dtype=np.float32)
    value = b.add(View(f"T,{K}"), b.table("x", x))
    weight, index = b.rewriter.add(Topk(J), (b.add(View(f"T,{E}"), b.table("scores", scores)),))
    made = {}
    for gate, extra in (
        ("halves", {"act": "silu"}),
        ("interleaved", {"act": "silu", "limit": 2.0, "alpha": 1.702, "bias": True}),
        ("", {"act": "relu"}),
    ):
        width = F if not gate else 2 * F
        w_in, w_out = (
            random.normal(size=(E, width, K)).astype(np.float32) / 8,
            random.normal(size=(E, K, F)).astype(np.float32) / 6,
        )
        biases = (
            [random.normal(size=(E, width)).astype(np.float32), random.normal(size=(E, K)).astype(np.float32)]
            if extra.get("bias")
            else []
        )
        op = Experts(gate=gate, scheme=text, **extra)
        name = gate or "plain"
        p_in, p_out = b.param(f"{name}.in", w_in), b.param(f"{name}.out", w_out)
        operands = [p_in, b.param(f"{name}.b1", biases[0]), p_out, b.param(f"{name}.b2", biases[1])] if biases else [p_in, p_out]
        b.out(name, b.add(View(f"1,T,{K}"), b.add(op, value, index, weight, *operands)))
        made[name] = (op, w_in, w_out, biases)
    program = Program(b, tmp_path)
    for count in (1, 2, 7, 70):
        tokens = random.permutation(TOKENS)[:count]
        got = program.run(tokens)
        s = scores[tokens]
        chosen = np.argsort(-s, axis=-1, kind="stable")[:, :J]
        for name, (op, w_in, w_out, biases) in made.items():
            for t in range(count):
                total, size = np.zeros(K), np.zeros(K)
                for e in chosen[t]:
                    a, c = stored(w_in[e], scheme), stored(w_out[e], scheme)
                    h = rounded(x[tokens[t]][None], scheme)[0] @ a.T + (biases[0][e] if biases else 0)
                    h = rounded(op.activate(torch.as_tensor(h)[None]).numpy(), scheme)[0]
                    total += s[t, e] * (h @ c.T + (biases[1][e] if biases else 0))
                    size += np.abs(s[t, e]) * (np.abs(h) @ np.abs(c).T + 1) * 3
                error = np.abs(got[name][t] - total) / size
                assert error.max() <= PRODUCT["experts/bf16" if scheme.activations == "bf16" else "experts"], (
                    name,
                    count,
                    t,
                    error.max(),
                )
    program.close()


@pytest.mark.parametrize("kv_dtype", ["f32", "int16", "int8"])
@pytest.mark.parametrize(("heads", "width", "k"), [(1, 20, 1), (5, 33, 7), (16, 64, 24), (3, 8, 60), (2, 8, 300)])
def test_indexer(heads, width, k, kv_dtype, tmp_path, random):
    """Against the op's own definition on small whole numbers, so that scores are exact and many are equal; and the attention that reads
    the list. The prompt in one step, in parts, and token by token."""
    b, length = Builder(), 120
    numbers = [random.integers(-9, 10, (TOKENS, n)).astype(np.float32) // 3 for n in (heads * width, width, heads)]
    shapes = [f"1,T,{heads},{width}", f"1,T,1,{width}", f"1,T,{heads}"]
    op, scale = Indexer(0, k, 0.5), 0.3
    q, key, weight = (b.add(View(s), b.table(f"index{i}", x)) for i, (s, x) in enumerate(zip(shapes, numbers, strict=True)))
    chosen = b.add(op, q, key, weight)
    b.out("chosen", b.add(Cast("f32"), chosen))
    large = [random.normal(size=(TOKENS, n)).astype(np.float32) for n in (4 * 16, 2 * 16, 2 * 16)]
    operands = [
        b.add(View(f"1,T,{n},16"), b.table(f"large{n}{i}", x)) for i, (n, x) in enumerate(zip((4, 2, 2), large, strict=True))
    ]
    attention = FusedAttention(1, scale, selected=True)
    b.out("attended", b.add(View("1,T,64"), b.add(attention, *operands, chosen)))
    program = Program(b, tmp_path, kv_dtype)
    tokens = random.permutation(TOKENS)[:length]
    results = []
    for way in ([length], [1] * length, [33, 1, 31, 55]):
        starts = np.cumsum([0, *way[:-1]])
        parts = [program.run(tokens[at : at + n], int(at)) for at, n in zip(starts, way, strict=True)]
        results.append({name: np.concatenate([p[name] for p in parts]) for name in ("chosen", "attended")})
    context = Context.single(length, wide=torch.float64)
    given = [torch.as_tensor(x[tokens]).double() for x in numbers]
    (wanted,) = op.reference(context, given[0].reshape(1, length, heads, width), given[1][None, :, None], given[2][None])
    assert np.array_equal(results[0]["chosen"], wanted[0].numpy())
    given = [torch.as_tensor(x[tokens]).double().reshape(1, length, -1, 16) for x in large]
    attended = attention.reference(context, *given, wanted)[0].reshape(length, 64).numpy()
    assert (
        np.abs(results[0]["attended"] - attended).max()
        <= {"f32": 1e-5, "int16": 2e-3, "int8": 5e-2}[kv_dtype] * np.abs(attended).max()
    )
    for result in results[1:]:
        for name, got in result.items():
            assert got.tobytes() == results[0][name].tobytes(), f"{name}: parts differ from the whole"
    program.close()


@pytest.mark.parametrize(("heads", "groups", "extent", "window"), [(4, 2, 1, 0), (6, 6, 17, 0), (4, 1, 90, 33)])
def test_attention_with_scores_by_distance(heads, groups, extent, window, tmp_path, random):
    """Against the op's own definition in float64, the prompt in one step, in parts, and token by token."""
    b, length, size = Builder(), 100, 20
    op = FusedAttention(0, size**-0.5, window, relative=True)
    shapes = [(heads, size), (groups, size), (groups, size), (heads, extent)]
    data = [random.normal(size=(TOKENS, h * d)).astype(np.float32) for h, d in shapes]
    operands = [b.add(View(f"1,T,{h},{d}"), b.table(f"x{i}", x)) for i, (x, (h, d)) in enumerate(zip(data, shapes, strict=True))]
    b.out("y", b.add(View(f"1,T,{heads * size}"), b.add(op, *operands)))
    program = Program(b, tmp_path)
    tokens = random.permutation(TOKENS)[:length]
    results = []
    for way in ([length], [1] * length, [33, 1, 31, 35]):
        starts = np.cumsum([0, *way[:-1]])
        results.append(
            np.concatenate([program.run(tokens[at : at + n], int(at))["y"] for at, n in zip(starts, way, strict=True)])
        )
    given = [torch.as_tensor(x[tokens]).double().reshape(1, length, *s) for x, s in zip(data, shapes, strict=True)]
    wanted = op.reference(Context.single(length, wide=torch.float64), *given)[0].reshape(length, -1).numpy()
    assert np.abs(results[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert all(r.tobytes() == results[0].tobytes() for r in results[1:]), "parts differ from the whole"
    program.close()


ATTENTION = {
    "plain": {},
    "rope": {"rope": True},
    "interleaved rope with norms": {"rope": True, "interleaved": True, "q_norm": True, "k_norm": True, "eps": 1e-6},
    "partial rope at an offset": {"rope": True, "offset": 4, "pairs": 4},
    "window": {"window": 8},
    "chunk": {"chunk": 16},
    "softcap": {"softcap": 5.0},
    "sinks": {"sinks": True},
    "slopes": {"slopes": True},
    "all": {"rope": True, "q_norm": True, "k_norm": True, "eps": 1e-5, "window": 33, "softcap": 20.0, "sinks": True},
}


@pytest.mark.parametrize(("heads", "groups", "dk", "dv"), [(4, 2, 16, 16), (7, 1, 20, 12), (3, 3, 33, 48)])
def test_attention(heads, groups, dk, dv, tmp_path, random):
    """Every feature against the op's own definition in float64, the prompt in one step, in parts, and token by token."""
    b, made, length = Builder(), {}, 100
    for name, fields in ATTENTION.items():
        fields = dict(fields)
        pairs = fields.pop("pairs", dk // 2)
        op = FusedAttention(0, dk**-0.5, **fields)
        q, k, v = (
            random.normal(size=(TOKENS, h * d)).astype(np.float32) * 1.5 for h, d in ((heads, dk), (groups, dk), (groups, dv))
        )
        vectors = {"q_norm": dk, "k_norm": dk, "sinks": heads, "slopes": heads}
        extra = {n: random.normal(size=s).astype(np.float32) for n, s in vectors.items() if fields.get(n)}
        frequencies = (10000.0 ** (-np.arange(pairs) / pairs)).astype(np.float32)
        key = name.replace(" ", "_")
        operands = [
            b.add(View(f"1,T,{h},{d}"), b.table(f"{key}.{n}", x))
            for n, x, h, d in (("q", q, heads, dk), ("k", k, groups, dk), ("v", v, groups, dv))
        ]
        if fields.get("rope"):
            operands.append(b.add(RopeTable(1.25), b.positions, b.param(f"{key}.f", frequencies)))
        operands += [b.param(f"{key}.{n}", x) for n, x in extra.items()]
        b.out(key, b.add(View(f"1,T,{heads * dv}"), b.add(op, *operands)))
        made[key] = (op, q, k, v, frequencies, extra)
    program = Program(b, tmp_path)
    tokens = random.permutation(TOKENS)[:length]
    ways = [[length], [1] * length, [33, 1, 31, 35]]
    results = []
    for way in ways:
        at, parts = 0, []
        for n in way:
            parts.append(program.run(tokens[at : at + n], at))
            at += n
        results.append({name: np.concatenate([p[name] for p in parts]) for name in made})
    context = Context.single(length, wide=torch.float64)
    for name, (op, q, k, v, frequencies, extra) in made.items():
        operands = [
            torch.as_tensor(x[tokens]).double().reshape(1, length, h, -1) for x, h in ((q, heads), (k, groups), (v, groups))
        ]
        if op.rope:
            operands += RopeTable(1.25).reference(context, torch.arange(length)[None], torch.as_tensor(frequencies))
        expected = (
            op.reference(context, *operands, *[torch.as_tensor(x).double() for x in extra.values()])[0]
            .reshape(length, -1)
            .numpy()
        )
        assert np.abs(results[0][name] - expected).max() <= 1e-5 * max(1, np.abs(expected).max()), (
            name,
            np.abs(results[0][name] - expected).max(),
        )
        for result in results[1:]:
            assert result[name].tobytes() == results[0][name].tobytes(), f"{name}: parts differ from the whole"
    program.close()
