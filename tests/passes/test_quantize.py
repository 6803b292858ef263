"""Which weight gets which scheme: the default, the rules, and what is left alone."""

from __future__ import annotations

import pytest
from llmc.compiler.ir.ops.linear import Linear
from llmc.errors import UnsupportedError, UsageError
from llmc.passes.order import cpu_passes
from llmc.passes.quantize import Quantize, module_of, weight_nodes


@pytest.fixture
def graph(front_end):
    def make(key):
        imported = front_end(key)[2]
        made = imported.graph
        for step in cpu_passes(imported.buffers):
            if step.name == "quantize":
                return made
            made = step.run(made)
        raise AssertionError

    return make


def schemes(graph, scheme="", *rules):
    """module → scheme after the pass."""
    after = Quantize(scheme, rules).run(graph)
    return {module_of(w, after): n.op.scheme for n, w in weight_nodes(after)}


def test_nothing_asked_nothing_changed(graph):
    assert set(schemes(graph("llama")).values()) == {""}


def test_an_integer_scheme_spares_head_and_table(graph):
    found = schemes(graph("llama"), "int4:g64/bf16")
    assert found.pop("model.embed_tokens").startswith("int8:channel") and found.pop("lm_head").startswith("int8:channel")
    assert set(found.values()) == {"int4:g64/bf16"} and len(found) == 14


def test_globs_choose_modules_and_the_last_match_wins(graph):
    found = schemes(graph("llama"), "int4", ("*.mlp.*", "int8"), ("model.layers.0.mlp.down_proj", "bf16"))
    assert found["model.layers.0.mlp.down_proj"] == "bf16" and found["model.layers.1.mlp.down_proj"] == "int8:channel/int8"
    assert found["model.layers.0.self_attn.q_proj"] == "int4:g64/bf16"
    turned = schemes(graph("llama"), "int4", ("model.layers.0.mlp.down_proj", "bf16"), ("*.mlp.*", "int8"))
    assert turned["model.layers.0.mlp.down_proj"] == "int8:channel/int8"


def test_a_rule_may_name_head_and_table(graph):
    found = schemes(graph("llama"), "int4", ("lm_head", "int4:g32"), ("model.embed_tokens", "f16"))
    assert found["lm_head"] == "int4:g32/bf16" and found["model.embed_tokens"] == "f16"


def test_a_rule_that_matches_nothing_is_an_error(graph):
    with pytest.raises(UsageError, match="matches no module"):
        schemes(graph("llama"), "int4", ("model.layers.7.*", "int8"))


@pytest.mark.parametrize("glob", ["q_proj", "MODEL.*", "model.norm"])
def test_globs_are_exact(glob, graph):
    with pytest.raises(UsageError):
        schemes(graph("llama"), "", (glob, "int8"))


@pytest.mark.parametrize("key", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_routers_are_left_alone_unless_named(key, graph):
    found = schemes(graph(key), "int4")
    routers = {m: s for m, s in found.items() if m.endswith((".gate", ".router"))}
    assert len(routers) == 2 and set(routers.values()) == {""}
    experts = {s for m, s in found.items() if m.endswith("experts")}
    assert experts == {"int4:g64/bf16"}
    (module, *_) = routers
    assert schemes(graph(key), "int4", (module, "int8"))[module] == "int8:channel/int8"


def test_tied_weights_share_a_scheme(graph):
    """gemma2's head is its table: a rule for one of them holds for both."""
    tied = graph("gemma2")
    table = next(n for n, _ in weight_nodes(tied) if n.op.name == "embedding")
    after = Quantize("int4", ((table.scope, "bf16"),)).run(tied)
    head = next(n for n, _ in weight_nodes(after) if "R" in str(n.output.type))
    assert head.op.scheme == next(after.find("embedding")).op.scheme == "bf16"
    assert {n.op.scheme for n, _ in weight_nodes(after) if n.op.name == "linear" and n is not head} == {"int4:g64/bf16"}


def test_two_schemes_for_tied_weights_are_an_error(graph):
    tied = graph("gemma2")
    head = next(n for n, _ in weight_nodes(tied) if isinstance(n.op, Linear) and "R" in str(n.output.type))
    table = next(n for n, _ in weight_nodes(tied) if n.op.name == "embedding")
    assert head.scope != table.scope
    with pytest.raises(UsageError, match="share one weight"):
        schemes(tied, "", (head.scope, "int8"), (table.scope, "bf16"))


def test_errors_of_a_scheme_come_through(graph):
    with pytest.raises(UsageError, match="int9"):
        schemes(graph("llama"), "", ("lm_head", "int9"))
    with pytest.raises(UnsupportedError):
        schemes(graph("llama"), "int4:g256")
