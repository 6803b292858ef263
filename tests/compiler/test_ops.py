"""Every op's reference implementation against plain torch or numpy, written another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from llmc.compiler.ir.op import catalog, make_op
from llmc.compiler.ir.ops.pointwise import ACTIVATIONS, BINARY, UNARY
from llmc.compiler.ir.reference import IR_DTYPE, Context
from llmc.compiler.ir.types import TensorType
from llmc.errors import VerifyError

T = 6


def run(name, *inputs, positions=None, sequences=None, **attributes):
    """The op's outputs in float64, whose shapes and dtypes must be those that `infer` gives."""
    op = make_op(name, attributes)
    positions = torch.arange(T) if positions is None else positions
    context = Context({"T": T, "R": 2}, positions, torch.zeros(T, dtype=torch.int64) if sequences is None else sequences)
    inferred = op.infer(*(TensorType(IR_DTYPE[t.dtype], tuple(t.shape)) for t in inputs))
    outs = op.reference(context, *inputs)
    for kind, out in zip(inferred, outs, strict=True):
        assert tuple(out.shape) == kind.concrete(context.sizes) and IR_DTYPE[out.dtype] == kind.dtype, (
            kind,
            out.shape,
            out.dtype,
        )
    return outs if len(outs) > 1 else outs[0]


@pytest.fixture
def draw(random):
    return lambda *shape: torch.as_tensor(random.normal(size=shape))


def same(a, b, tolerance=1e-12):
    assert a.shape == b.shape and float((a - b).abs().max()) <= tolerance * (1 + float(b.abs().max()))


def test_every_op_has_a_test_here():
    source = Path(__file__).read_text()
    missing = [n for n in catalog() if f'run("{n}"' not in source]
    assert not missing, missing


def test_hadamard(draw):
    x = draw(1, T, 24)
    matrix = torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(8)] for i in range(8)], dtype=torch.float64) / 8**0.5
    same(run("hadamard", x, block=8), (x.reshape(1, T, 3, 8) @ matrix).reshape(x.shape))


def test_head_linear(draw):
    x, w = draw(1, T, 3, 5), draw(3, 4, 5)
    same(run("head_linear", x, w), torch.stack([x[:, :, h] @ w[h].T for h in range(3)], 2))


def test_causal_conv(draw):
    x, weight, bias = draw(1, T, 4), draw(4, 3), draw(4)
    wanted = F.conv1d(F.pad(x[0].T[None], (2, 0)), weight[:, None], bias, groups=4)[0].T[None]
    same(run("causal_conv", x, weight, bias, bias=True), wanted)
    apart = torch.cat([run("causal_conv", x[:, i], weight) for i in ([0, 2, 5, 0, 0, 0], [1, 3, 4, 0, 0, 0])], 1)
    got = run("causal_conv", x, weight, sequences=torch.tensor([0, 1, 0, 1, 1, 0]))
    same(got[:, [0, 2, 5, 1, 3, 4]], apart[:, [0, 1, 2, 6, 7, 8]])


def test_recurrence(draw):
    """Against the state written as sums over the tokens before, and against transformers' own recurrent functions."""
    from transformers.models.kimi_linear import modeling_kimi_linear as kimi
    from transformers.models.mamba import modeling_mamba as mamba
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    q, k, v, g = draw(1, T, 2, 3), draw(1, T, 2, 3), draw(1, T, 4, 5), -draw(1, T, 4).abs()
    wide = [t.repeat_interleave(2, 2)[0] for t in (q, k)]
    upto = g[0].cumsum(0)
    decay = (upto[:, None] - upto[None]).exp() * torch.ones(T, T).tril()[..., None]
    scores = torch.einsum("thn,shn->tsh", *wide) * decay
    same(run("recurrence", q, k, v, g), torch.einsum("tsh,shp->thp", scores, v[0])[None], 1e-10)

    beta, each = draw(1, T, 4).sigmoid(), -draw(1, T, 4, 3).abs()
    q4, k4 = (F.normalize(draw(1, T, 4, 3), dim=-1) for _ in "qk")
    scale = 3**-0.5
    wanted = qwen.torch_recurrent_gated_delta_rule(q4, k4, v, g, beta, None, False)[0]
    same(run("recurrence", q4 * scale, k4, v, g, beta, delta=True), wanted, 1e-6)
    wanted = kimi.recurrent_kimi_delta_attention(q4, k4, v, each, beta, None, False)[0]
    same(run("recurrence", q4 * scale, k4, v, each, beta, delta=True), wanted, 1e-6)

    x, dt, rates, b, c = draw(1, 7, T), draw(1, 7, T).abs(), -draw(7, 3).abs(), draw(1, 3, T), draw(1, 3, T)
    wanted = mamba.mamba_selective_scan(x, dt, rates, b, c)
    step = dt.transpose(1, 2)
    keys = [t.transpose(1, 2)[:, :, None] for t in (c, b)]
    got = run("recurrence", *keys, (step * x.transpose(1, 2))[..., None], step, rates.T, rates=True)
    same(got[..., 0].transpose(1, 2), wanted, 1e-6)


def test_layout_ops(draw):
    x = draw(1, T, 6)
    same(run("view", x, shape="1,6,2,3"), x.reshape(1, T, 2, 3))
    same(run("permute", x, order=(2, 0, 1)), x.movedim(2, 0))
    same(run("slice", x, dim=2, start=1, stop=6, step=2), x[..., [1, 3, 5]])
    same(run("expand", x[:, :, None], shape="1,6,4,6"), torch.stack([x] * 4, 2))
    same(run("concat", x, x * 2, dim=2), torch.stack([x, x * 2], 2).reshape(1, T, 12))
    same(run("iota", type="i64[T]", start=3, step=2), torch.tensor([3, 5, 7, 9, 11, 13]))
    same(run("full", type="f64[T,2]", value=1.5), torch.ones(T, 2, dtype=torch.float64) * 1.5)
    assert run("cast", x, dtype="bf16").equal(x.bfloat16())


def test_indexing_ops(draw):
    x, table = draw(1, T, 6), draw(9, 4)
    index = torch.tensor([[0, 8, 3, 3, 1, 7]])
    same(run("embedding", table, index), torch.stack([table[i] for i in index[0]])[None])
    same(run("index_select", x, torch.tensor([5, 0]), dim=1), torch.stack([x[:, 5], x[:, 0]], 1))
    picks = torch.tensor([[[0, 5], [1, 1], [2, 0], [3, 4], [5, 5], [0, 1]]])
    same(run("gather", x, picks, dim=2), torch.stack([x[0, t][picks[0, t].tolist()] for t in range(T)])[None])
    expected, src = x.clone(), draw(1, T, 2)
    picks = torch.tensor([[[0, 5], [1, 2], [2, 0], [3, 4], [5, 4], [0, 1]]])
    for t in range(T):
        for j in range(2):
            expected[0, t, picks[0, t, j]] = src[0, t, j]
    same(run("scatter", x, picks, src, dim=2), expected)
    values, order = run("topk", x, k=3)
    assert order.tolist() == [[np.argsort(-row.numpy(), kind="stable")[:3].tolist() for row in x[0]]]
    same(values, x.gather(2, order))
    tied = run("topk", torch.zeros(1, 5, dtype=torch.float64), k=3)[1]
    assert tied.tolist() == [[0, 1, 2]]
    same(run("cumsum", x, dim=2), torch.as_tensor(np.cumsum(x.numpy(), 2)))


@pytest.mark.parametrize("fn", [*UNARY, *BINARY, "where"])
def test_pointwise(fn, draw):
    """Against numpy, whose functions are not torch's."""
    x, y = draw(T, 4), draw(T, 4)
    a, b = x.numpy(), y.numpy()
    sigmoid = 1 / (1 + np.exp(-a))
    table = {
        "rsqrt": lambda: 1 / np.sqrt(np.abs(a)), "reciprocal": lambda: 1 / a, "sigmoid": lambda: sigmoid, "relu": lambda: a * (a > 0), "erfinv": lambda: torch.special.ndtri((x.tanh() + 1) / 2).numpy() / 2**0.5, "erf": lambda: 2 * torch.special.ndtr(x * 2**0.5).numpy() - 1, "round": lambda: np.rint(a), "neg": lambda: -a,
        "not": lambda: ~(a > 0), "silu": lambda: a * sigmoid, "gelu": lambda: a * torch.special.ndtr(x).numpy(), "gelu_tanh": lambda: 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))), "quick_gelu": lambda: a / (1 + np.exp(-1.702 * a)),
        "relu2": lambda: (a * (a > 0)) ** 2, "softplus": lambda: np.logaddexp(a, 0), "copy": lambda: a, "add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b, "div": lambda: a / b, "max": lambda: np.maximum(a, b), "min": lambda: np.minimum(a, b),
        "pow": lambda: np.abs(a) ** b, "floor_div": lambda: np.floor(a / b), "mod": lambda: np.mod(a, b), "eq": lambda: a == b, "ne": lambda: a != b, "lt": lambda: a < b, "le": lambda: a <= b, "gt": lambda: a > b, "ge": lambda: a >= b,
        "and": lambda: (a > 0) & (b > 0), "or": lambda: (a > 0) | (b > 0), "where": lambda: np.where(a > 0, a, b), "sqrt": lambda: np.sqrt(np.abs(a)), "log": lambda: np.log(np.abs(a)), "log1p": lambda: np.log1p(np.abs(a)),
    }  # fmt: skip
    wanted = table[fn]() if fn in table else getattr(np, fn)(a)
    inputs = [x, y] if fn in BINARY else [x]
    if fn in ("rsqrt", "sqrt", "log", "log1p"):
        inputs = [x.abs()]
    if fn == "erfinv":
        inputs = [x.tanh()]
    if fn == "pow":
        inputs = [x.abs(), y]
    if fn in ("not", "and", "or"):
        inputs = [t > 0 for t in inputs]
    if fn == "where":
        inputs = [x > 0, x, y]
    got = run("pointwise", *inputs, fn=fn, dtype="bool" if wanted.dtype == bool else "f64")
    assert np.allclose(got.numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_reductions(draw):
    x = draw(1, T, 5)
    for fn, wanted in {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "prod": np.prod}.items():
        assert np.allclose(run("reduce", x, fn=fn, dims=(2,), keepdim=True, dtype="f64"), wanted(x.numpy(), 2, keepdims=True))
        assert np.allclose(run("reduce", x, fn=fn, dims=(0, 2), keepdim=False, dtype="f64"), wanted(x.numpy(), (0, 2)))
    assert run("reduce", x, fn="argmax", dims=(2,), keepdim=False, dtype="i64").tolist() == x.numpy().argmax(2).tolist()
    for fn, wanted in {"any": np.any, "all": np.all}.items():
        assert run("reduce", x > 0, fn=fn, dims=(2,), keepdim=False, dtype="bool").tolist() == wanted(x.numpy() > 0, 2).tolist()


def test_normal_forms(draw):
    x, w, c = draw(1, T, 8), draw(8), draw(8)
    mean, square = x.mean(-1, keepdim=True), (x * x).sum(-1, keepdim=True)
    same(run("rms_norm", x, w, eps=0.1), x / (square / 8 + 0.1).sqrt() * w)
    same(run("rms_norm", x, eps=0.1, weight=False, l2=True), x / (square + 0.1).sqrt())
    same(run("layer_norm", x, w, c, eps=0.1), (x - mean) / (((x - mean) ** 2).mean(-1, keepdim=True) + 0.1).sqrt() * w + c)
    same(run("layer_norm", x, eps=0.1, weight=False, bias=False), F.layer_norm(x, (8,), eps=0.1))
    e = torch.exp(x)
    same(run("softmax", x, dim=2, log=False, dtype="f64"), e / e.sum(2, keepdim=True))
    same(run("softmax", x, dim=1, log=True, dtype="f64"), torch.log(e / e.sum(1, keepdim=True)))


def test_products(draw):
    x, w, bias, r = draw(1, T, 8), draw(10, 8), draw(10), draw(1, T, 10)
    same(run("matmul", x, w.T[None]), torch.einsum("btk,nk->btn", x, w))
    same(run("linear", x, w), x @ w.T)
    same(run("linear", x, w, bias, r, bias=True, residual=True, act="silu"), F.silu(x @ w.T + bias) + r)
    gate, up = (x @ w.T).split(5, -1)
    same(run("linear", x, w, act="gelu", gated=True), F.gelu(gate) * up)
    nw = draw(8)
    normed = x / ((x * x).mean(-1, keepdim=True) + 1e-3).sqrt() * nw
    same(run("linear", x, w, nw, norm="rms", eps=1e-3, norm_weight=True), normed @ w.T)
    rounded = run("linear", x, w, activations="bf16")
    same(rounded, x.bfloat16().double() @ w.T)
    assert not torch.equal(rounded, x @ w.T)
    scale = x.abs().amax(-1, keepdim=True) / 127
    same(run("linear", x, w, activations="int8"), (x / scale).round() * scale @ w.T)


@pytest.mark.parametrize("gate", ["", "halves", "interleaved"])
@pytest.mark.parametrize("bias", [False, True])
def test_experts(gate, bias, draw, random):
    """One token, one choice at a time."""
    E, H, N, J = 4, 6, 5, 2
    x, weight, index = draw(T, H), draw(T, J), torch.as_tensor(random.integers(0, E, (T, J)))
    w_in, w_out = draw(E, N * (2 if gate else 1), H), draw(E, H, N)
    b_in, b_out = draw(E, w_in.shape[1]), draw(E, H)
    wanted = torch.zeros(T, H, dtype=torch.float64)
    for t in range(T):
        for j in range(J):
            e = int(index[t, j])
            h = w_in[e] @ x[t] + (b_in[e] if bias else 0)
            if gate:
                g, u = (h[:N], h[N:]) if gate == "halves" else (h[0::2], h[1::2])
                h = F.silu(g) * u
            else:
                h = F.silu(h)
            wanted[t] += weight[t, j] * (w_out[e] @ h + (b_out[e] if bias else 0))
    inputs = (x, index, weight, w_in, b_in, w_out, b_out) if bias else (x, index, weight, w_in, w_out)
    same(run("experts", *inputs, act="silu", gate=gate, bias=bias), wanted)


def test_the_experts_of_gpt_oss(draw):
    """clamp, then (up + 1) · gate · σ(1.702 gate)."""
    x, w_in, w_out = draw(T, 4) * 9, draw(1, 6, 4), draw(1, 4, 3)
    g, u = (x @ w_in[0].T)[:, 0::2].clamp(max=7.0), (x @ w_in[0].T)[:, 1::2].clamp(-7.0, 7.0)
    wanted = ((u + 1) * g * torch.sigmoid(1.702 * g)) @ w_out[0].T
    same(
        run(
            "experts",
            x,
            torch.zeros(T, 1, dtype=torch.int64),
            torch.ones(T, 1, dtype=torch.float64),
            w_in,
            w_out,
            act="silu",
            gate="interleaved",
            limit=7.0,
            alpha=1.702,
        ),
        wanted,
    )


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("offset", [0, 2])
def test_rotation_is_complex_multiplication(interleaved, offset, draw):
    x, frequencies = draw(1, T, 2, 8), torch.tensor([1.0, 0.25, 0.01])
    positions = torch.tensor([[0, 1, 5, 100, 7, 3]])
    table = run("rope_table", positions, frequencies, scale=1.5)
    angle = positions[0, :, None].double() * frequencies.double()
    same(table.double()[0], torch.stack([angle.cos(), angle.sin()], 1) * 1.5, 1e-5)
    part = x[..., offset : offset + 6]
    pairs = torch.complex(part[..., 0::2], part[..., 1::2]) if interleaved else torch.complex(part[..., :3], part[..., 3:])
    turned = pairs * torch.complex(table[:, :, 0], table[:, :, 1]).to(torch.complex128)[:, :, None]
    wanted = x.clone()
    wanted[..., offset : offset + 6] = (
        torch.stack([turned.real, turned.imag], -1).flatten(-2) if interleaved else torch.cat([turned.real, turned.imag], -1)
    )
    same(run("rope", x, table.double(), interleaved=interleaved, offset=offset), wanted)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 3},
        {"chunk": 2},
        {"softcap": 2.0},
        {"sinks": True},
        {"slopes": True},
        {"window": 2, "softcap": 1.0, "sinks": True, "slopes": True},
        {"causal": False},
        {"relative": True},
        {"selected": True},
        {"window": 3, "sinks": True, "slopes": True, "relative": True, "selected": True},
    ],
    ids=str,
)
def test_attention_one_query_at_a_time(options, draw):
    """Two packed sequences; every query by itself, with a loop over its keys."""
    q, k, v, sinks, slopes = draw(1, T, 4, 5), draw(1, T, 2, 5), draw(1, T, 2, 3), draw(4), draw(4)
    relative = draw(1, T, 4, 2)
    positions, sequences = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 0, 0, 0, 1, 1])
    selected = torch.tensor([[[0, -1], [0, 1], [1, -1], [1, 3], [0, -1], [0, -1]]], dtype=torch.int32)
    wanted = torch.zeros(1, T, 4, 3, dtype=torch.float64)
    for t in range(T):
        for h in range(4):
            weights, values = [], []
            for s in range(T):
                p, c = int(positions[t]), int(positions[s])
                if sequences[s] != sequences[t] or (options.get("causal", True) and c > p):
                    continue
                if options.get("window") and c <= p - options["window"]:
                    continue
                if options.get("selected") and c not in selected[0, t].tolist():
                    continue
                if options.get("chunk") and c // options["chunk"] != p // options["chunk"]:
                    continue
                score = float(q[0, t, h] @ k[0, s, h // 2]) * 0.3
                if options.get("softcap"):
                    score = options["softcap"] * np.tanh(score / options["softcap"])
                if options.get("slopes"):
                    score += float(slopes[h]) * (c - p)
                if options.get("relative") and p - c < 2:
                    score += float(relative[0, t, h, p - c])
                weights.append(np.exp(score))
                values.append(v[0, s, h // 2])
            total = sum(weights) + (np.exp(float(sinks[h])) if options.get("sinks") else 0)
            wanted[0, t, h] = sum(w / total * x for w, x in zip(weights, values, strict=True))
    given = (("sinks", sinks), ("slopes", slopes), ("relative", relative), ("selected", selected))
    extra = [x for n, x in given if options.get(n)]
    same(run("attention", q, k, v, *extra, cache=0, scale=0.3, positions=positions, sequences=sequences, **options), wanted)
    same(run("fused_attention", q, k, v, *extra, cache=0, scale=0.3, positions=positions, sequences=sequences, **options), wanted)


def test_best_keys(draw):
    """Two packed sequences: sorted in Python; equal scores give the earlier token."""
    scores = draw(1, T, T)
    scores[0, 3, :4] = torch.tensor([1.0, 2.0, 1.0, 1.0])
    positions, sequences = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 0, 0, 0, 1, 1])
    wanted = []
    for t in range(T):
        seen = [s for s in range(t + 1) if sequences[s] == sequences[t]]
        best = sorted(seen, key=lambda s, t=t: (-float(scores[0, t, s]), s))[:2]
        wanted.append([*sorted(int(positions[s]) for s in best), -1, -1][:2])
    got = run("best_keys", scores, k=2, positions=positions, sequences=sequences)
    assert got.tolist() == [wanted] and wanted[3] == [0, 1]
    assert run("best_keys", scores, k=9)[0, 2].tolist() == [0, 1, 2, -1, -1, -1, -1, -1, -1]


def test_indexer(draw):
    q, key, weight = draw(1, T, 3, 5), draw(1, T, 1, 5), draw(1, T, 3)
    scores = torch.zeros(1, T, T, dtype=torch.float64)
    for t in range(T):
        for s in range(T):
            scores[0, t, s] = sum(float(weight[0, t, j]) * max(0.0, 0.3 * float(q[0, t, j] @ key[0, s, 0])) for j in range(3))
    positions, sequences = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 0, 0, 0, 1, 1])
    for given in ({}, {"positions": positions, "sequences": sequences}):
        got = run("indexer", q, key, weight, cache=0, k=2, scale=0.3, **given)
        assert torch.equal(got, run("best_keys", scores, k=2, **given))


def test_fused_attention_norms_and_turns_first(draw):
    q, k, v, qw, kw = draw(1, T, 4, 6), draw(1, T, 2, 6), draw(1, T, 2, 3), draw(6), draw(6)
    table = run("rope_table", torch.arange(T)[None], torch.tensor([1.0, 0.1])).double()
    turn = lambda x, w: run("rope", run("rms_norm", x, w, eps=1e-3), table, interleaved=True, offset=1)  # noqa: E731
    wanted = run("attention", turn(q, qw), turn(k, kw), v, cache=0, scale=0.4)
    same(
        run(
            "fused_attention",
            q,
            k,
            v,
            table,
            qw,
            kw,
            cache=0,
            scale=0.4,
            rope=True,
            interleaved=True,
            offset=1,
            q_norm=True,
            k_norm=True,
            eps=1e-3,
        ),
        wanted,
    )


WRONG = [
    ("linear", [(1, 6, 8), (10, 9)], {}), ("linear", [(1, 6, 8), (9, 8)], {"gated": True}), ("linear", [(1, 6, 8), (10, 8), (9,)], {"bias": True}), ("linear", [(1, 6, 8), (10, 8)], {"act": "nope"}), ("linear", [(1, 6, 8), (10, 8)], {"bias": True}),
    ("matmul", [(2, 3), (4, 5)], {}), ("view", [(2, 3)], {"shape": "7"}), ("permute", [(2, 3)], {"order": (0, 0)}), ("slice", [(2, 3)], {"dim": 1, "start": 2, "stop": 4}), ("slice", [(2, 3)], {"dim": 1, "start": 2, "stop": 1}),
    ("slice", [(2, 3)], {"dim": 1, "start": 0, "stop": 3, "step": 0}), ("concat", [(2, 3), (3, 3)], {"dim": 1}), ("expand", [(2, 3)], {"shape": "2,4"}), ("topk", [(2, 3)], {"k": 4}), ("topk", [(2, 3)], {"k": 0}), ("rms_norm", [(2, 3), (4,)], {"eps": 1e-5}),
    ("softmax", [(2, 3)], {"dim": 2, "log": False, "dtype": "f32"}), ("reduce", [(2, 3)], {"fn": "sum", "dims": (2,), "keepdim": True, "dtype": "f32"}), ("reduce", [(2, 3)], {"fn": "median", "dims": (1,), "keepdim": True, "dtype": "f32"}),
    ("attention", [(1, 6, 4, 5), (1, 6, 3, 5), (1, 6, 3, 5)], {"cache": 0, "scale": 1.0}), ("attention", [(1, 6, 4, 5), (1, 6, 2, 6), (1, 6, 2, 6)], {"cache": 0, "scale": 1.0}), ("pointwise", [(2, 3), (2, 4)], {"fn": "add", "dtype": "f32"}),
    ("hadamard", [(1, 6, 24)], {"block": 16}), ("hadamard", [(1, 6, 24)], {"block": 6}), ("linear", [(1, 6, 8), (10, 8)], {"hadamard": 16}), ("head_linear", [(1, 6, 3, 5), (3, 4, 6)], {}), ("head_linear", [(1, 6, 2, 5), (3, 4, 5)], {}),
    ("best_keys", [(1, 6, 5)], {"k": 2}), ("best_keys", [(1, 6, 6)], {"k": 0}), ("indexer", [(1, 6, 3, 5), (1, 6, 3, 5), (1, 6, 3)], {"cache": 0, "k": 2}), ("indexer", [(1, 6, 3, 5), (1, 6, 1, 5), (1, 6, 2)], {"cache": 0, "k": 2}),
    ("indexer", [(1, 6, 3, 5), (1, 6, 1, 5), (1, 6, 3)], {"cache": 0, "k": 2, "scale": -1.0}), ("attention", [(1, 6, 4, 5), (1, 6, 2, 5), (1, 6, 2, 5), (1, 6, 2)], {"cache": 0, "scale": 1.0, "selected": True}), ("attention", [(1, 6, 4, 5), (1, 6, 2, 5), (1, 6, 2, 5), (1, 6, 2, 3)], {"cache": 0, "scale": 1.0, "relative": True}),
    ("pointwise", [(2, 3)], {"fn": "add", "dtype": "f32"}), ("pointwise", [(2, 3)], {"fn": "nope", "dtype": "f32"}), ("pointwise", [(2, 3)], {"fn": "exp", "dtype": "f99"}), ("cast", [(2, 3)], {"dtype": "f99"}), ("rope", [(1, 6, 2, 4), (1, 6, 2, 3)], {}),
    ("index_select", [(2, 3), (2,)], {"dim": 0}), ("embedding", [(2, 3), (2,)], {}), ("experts", [(6, 8), (6, 2), (6, 2), (4, 5, 9), (4, 8, 5)], {"act": "silu"}), ("experts", [(6, 8), (6, 2), (6, 2), (4, 10, 8), (4, 8, 4)], {"act": "silu", "gate": "halves"}),
    ("experts", [(6, 8), (6, 2), (6, 2), (4, 5, 8), (4, 8, 5)], {"act": "nope"}), ("gather", [(2, 3), (2, 3)], {"dim": 1}), ("cumsum", [(2, 3)], {"dim": 2}), ("fused_attention", [(1, 6, 4, 8), (1, 6, 2, 8), (1, 6, 2, 8), (1, 6, 2, 9)], {"cache": 0, "scale": 1.0, "rope": True}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shapes", "attributes"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_inputs_that_do_not_fit_are_refused(name, shapes, attributes):
    with pytest.raises(VerifyError):
        make_op(name, attributes).infer(*(TensorType("f32", s) for s in shapes))


def test_activations_are_functions():
    assert set(ACTIVATIONS) <= set(UNARY)
