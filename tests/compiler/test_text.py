"""The textual IR and the verifier: what is printed is read back the same, and what is wrong is refused with its place."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmc.compiler.ir.graph import Graph, Node, Value
from llmc.compiler.ir.op import catalog, make_op
from llmc.compiler.ir.ops.fused_attention import FusedAttention
from llmc.compiler.ir.ops.linear import Linear
from llmc.compiler.ir.ops.rms_norm import RmsNorm
from llmc.compiler.ir.text import parse_graph, print_graph
from llmc.compiler.ir.types import Sym, TensorType
from llmc.compiler.ir.verify import verify
from llmc.errors import VerifyError
from llmc.passes.order import cpu_passes
from llmc.passes.quantize import Quantize
from models import MODELS

TEXT = """llmc.ir 1
input %x: f32[1,T,64]
param @a.weight: bf16[48,64]
param @norm-1/w:0: f32[64]
const @c: f32[3] = [1.0, -2.5e-09, inf]
const @i: i64[2] = [0, 7]
%0: f32[1,T,64] = rms_norm(%x, @norm-1/w:0) {eps=1e-05, weight=True, l2=False} // model.norm
%1: f32[1,T,48] = linear(%0, @a.weight) {bias=False, residual=False, act='', gated=False, scheme='int4:g64/bf16', activations='', norm='', eps=0.0, norm_weight=False, norm_bias=False, hadamard=0} // model.a
%2: f32[1,T,4], %3: i64[1,T,4] = topk(%1) {k=4}
%4: f32[1,4,T] = permute(%2) {order=(0, 2, 1)}
return %4, %3
"""


def without_source(graph):
    """The source line of a node is for people and not part of the text."""
    return replace(graph, nodes=tuple(replace(n, source="") for n in graph.nodes))


def test_a_text_is_read_and_printed_the_same():
    graph = parse_graph(TEXT)
    assert print_graph(graph) == TEXT and parse_graph(print_graph(graph)) == graph
    assert len(verify(graph).nodes) == 4


@pytest.mark.parametrize("key", MODELS)
def test_imported_and_lowered_graphs_are_read_back(key, front_end):
    imported = front_end(key)[2]
    graph = imported.graph
    assert parse_graph(print_graph(graph)) == without_source(graph)
    for step in cpu_passes(imported.buffers, Quantize("int4")):
        graph = step.run(graph)
    text = print_graph(graph)
    assert parse_graph(text) == without_source(graph) and print_graph(parse_graph(text)) == text


@given(st.floats(), st.floats(), st.text(st.characters(codec="ascii", exclude_characters="\n\r"), max_size=12), st.integers())
def test_attributes_of_any_value_are_read_back(a, b, text, number):
    op = FusedAttention(number, a, softcap=b)
    x = Value("%x", TensorType("f32", (1, Sym("T"), 2, 4)))
    named = Linear(scheme=text)
    graph = Graph((x,), (), (Node(op, (x, x, x), (Value("%0", x.type),)), Node(named, (x, x), (Value("%1", x.type),))), (x,))
    back = parse_graph(print_graph(graph))
    assert repr(back.nodes[0].op) == repr(op) and back.nodes[1].op == named


@given(st.lists(st.one_of(st.integers(-(1 << 62), 1 << 62), st.floats(allow_nan=False)), max_size=6))
def test_constants_are_read_back(numbers):
    value = Value("@c", TensorType("f64", (len(numbers),)))
    graph = Graph((), (value,), (), (value,), {"@c": tuple(numbers)})
    assert parse_graph(print_graph(graph)) == graph


WRONG = {
    "another version": (TEXT.replace("llmc.ir 1", "llmc.ir 2"), "line 1"),
    "empty": ("", "line 1"),
    "no return": (TEXT.rpartition("return")[0], "return"),
    "unknown op": (TEXT.replace("topk(", "topq("), "line 9"),
    "the nearest op is named": (TEXT.replace("rms_norm(", "rms_nrm("), "rms_norm"),
    "unknown attribute": (TEXT.replace("{k=4}", "{n=4}"), "line 9"),
    "missing attribute": (TEXT.replace(" {k=4}", ""), "line 9"),
    "attribute is code": (TEXT.replace("{k=4}", "{k=__import__('os')}"), "line 9"),
    "attribute is no value": (TEXT.replace("{k=4}", "{k=+foo}"), "line 9"),
    "attribute by position": (TEXT.replace("{k=4}", "{4}"), "line 9"),
    "attributes twice": (TEXT.replace("{k=4}", "{k=4, k=5}"), "line 9"),
    "undefined value": (TEXT.replace("permute(%2)", "permute(%9)"), "line 10"),
    "undefined result": (TEXT.replace("return %4", "return %9"), "%9"),
    "defined twice": (TEXT.replace("%4: f32[1,4,T]", "%2: f32[1,4,T]"), "line 10"),
    "an input twice": (TEXT.replace("param @a", "input %x: f32[1]\nparam @a"), "%x"),
    "not a type": (TEXT.replace("f32[1,4,T]", "f32[1,4,T"), "line 10"),
    "a constant of text": (TEXT.replace("[0, 7]", "[0, 'a']"), "line 6"),
    "a constant of code": (TEXT.replace("[0, 7]", "[0, open('x')]"), "line 6"),
    "garbage": (TEXT.replace("return", "garbage\nreturn"), "line 11"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_text_is_refused_with_its_place(case):
    text, where = WRONG[case]
    with pytest.raises(VerifyError) as error:
        verify(parse_graph(text))
    assert where in str(error.value)


INVALID = {
    "wrong K": (TEXT.replace("@a.weight: bf16[48,64]", "@a.weight: bf16[48,65]"), ["%1 linear", "K 64 != 65", "model.a"]),
    "wrong output type": (TEXT.replace("%4: f32[1,4,T]", "%4: f32[1,T,4]"), ["%4 permute", "f32[1,T,4]", "f32[1,4,T]"]),
    "wrong dtype": (TEXT.replace("%3: i64", "%3: i32"), ["%2 topk", "i32"]),
    "k too large": (TEXT.replace("k=4", "k=400"), ["%2 topk", "400"]),
    "a permutation that is none": (TEXT.replace("(0, 2, 1)", "(0, 2, 2)"), ["%4 permute"]),
    "norm weight of another size": (TEXT.replace("@norm-1/w:0: f32[64]", "@norm-1/w:0: f32[63]"), ["%0 rms_norm", "model.norm"]),
    "a constant of another size": (TEXT.replace("[0, 7]", "[0, 7, 8]"), ["@i", "3 numbers"]),
}


@pytest.mark.parametrize("case", INVALID)
def test_the_verifier_says_where_and_what_and_after_which_pass(case):
    text, parts = INVALID[case]
    with pytest.raises(VerifyError) as error:
        verify(parse_graph(text), "some_pass")
    for part in ("after some_pass", *parts):
        assert part in str(error.value), part


def test_the_verifier_finds_what_a_text_cannot_say():
    graph = parse_graph(TEXT)
    first, *rest = graph.nodes
    cases = {
        "used before it is defined": replace(graph, nodes=(*rest, first)),
        "defined twice": replace(graph, nodes=(first, *graph.nodes)),
        "used as": replace(
            graph,
            nodes=(replace(first, inputs=(replace(first.inputs[0], type=TensorType("f32", (1, 2, 64))), first.inputs[1])), *rest),
        ),
        "must start with '@'": replace(graph, params=(*graph.params, Value("%p", TensorType("f32", ())))),
        "is not a parameter": replace(graph, constants={**graph.constants, "@none": (1,)}),
        "which nothing defines": replace(graph, outputs=(Value("%77", TensorType("f32", ())),)),
    }
    for message, wrong in cases.items():
        with pytest.raises(VerifyError, match=message):
            verify(wrong)


def test_ops_are_found_by_name_and_compare_by_value():
    assert make_op("rms_norm", {"eps": 1e-6}) == RmsNorm(1e-6)
    for name, cls in catalog().items():
        assert cls.name == name and cls.__doc__
