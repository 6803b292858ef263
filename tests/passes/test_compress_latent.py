"""Latent attention over its latent: the same values, a cache that does not grow with the heads, whatever stores the weight."""

from __future__ import annotations

from dataclasses import replace

import llmc
import numpy as np
import pytest
import torch
from llmc.compiler.ir.ops.attention import Attention
from llmc.compiler.ir.reference import Context, run
from llmc.compiler.ir.verify import verify
from llmc.passes.compress_latent import CompressLatent
from llmc.passes.order import raising_passes
from llmc.pipeline import parameters
from llmc.runtime.artifact import open_artifact
from models import original_logits

WHOLE = {"index_topk": 256}  # no shorter than the context: every token is chosen
IDS = [5, 9, 33, 17, 2, 40, 8, 21, 3, 60, 11, 12]


def raised(imported):
    graph = imported.graph
    for step in raising_passes(imported.buffers):
        graph = step.run(graph)
    return graph


def test_the_latent_attention_computes_the_same(front_end):
    source, captured, imported = front_end("glm_moe_dsa")
    graph, params = raised(imported), parameters(source, captured, imported)
    changed = verify(CompressLatent().run(graph), "compress_latent")
    assert [n.inputs[1].type.shape[2] for n in changed.find("attention")] == [1] * len(list(graph.find("attention")))
    assert not any("kv_b_proj" in n.scope and n.op.name == "linear" for n in changed.nodes)
    context = Context.single(len(IDS), wide=torch.float64)
    wanted, got = (run(g, params, torch.tensor(IDS), context)[0] for g in (graph, changed))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_attention_with_heads_of_its_own_stays(front_end):
    graph = raised(front_end("llama")[2])
    assert CompressLatent().run(graph).nodes == graph.nodes


@pytest.mark.parametrize(
    "scheme", ["int4:g32:stored:order-01234567/bf16", "nvfp4:stored/nvfp4", "int8:channel:stored/int8-static"]
)
def test_weights_that_a_product_by_head_cannot_take_stay_whole(front_end, scheme):
    graph = raised(front_end("glm_moe_dsa")[2])
    nodes = tuple(
        replace(n, op=replace(n.op, scheme=scheme)) if n.op.name == "linear" and "kv_b_proj" in n.scope else n
        for n in graph.nodes
    )
    assert not list(CompressLatent().run(replace(graph, nodes=nodes)).find("head_linear"))


def test_a_cache_with_fixed_steps_stays(front_end):
    graph = raised(front_end("glm_moe_dsa")[2])
    fixed = tuple(
        replace(n, op=replace(n.op, k_scale=0.5, v_scale=0.5)) if isinstance(n.op, Attention) else n for n in graph.nodes
    )
    assert not list(CompressLatent().run(replace(graph, nodes=fixed)).find("head_linear"))


@pytest.mark.parametrize(
    ("quant", "bound"),
    [("int8:channel/bf16", 0.02), ("int4:g32:asym/bf16", 0.3), ("int8", 0.02), ("fp8", 0.05), ("int4:g16/bf16", 0.3)],
)
def test_artifacts_of_every_kind_of_weight(checkpoint, tmp_path, quant, bound):
    report = llmc.compile(checkpoint("glm_moe_dsa", **WHOLE), tmp_path / "a.llmc", quant=quant, target=("cpu:native",))
    assert report.conformance["kl_mean"] < bound
    assert report.quant["model.layers.*.self_attn.kv_b_proj"].startswith(quant.partition(":")[0].replace("fp8", "fp8_e4m3"))


@pytest.mark.parametrize(("kv_dtype", "bound"), [("f16", 1e-3), ("int16", 3e-3), ("bf16", 1e-2), ("int8", 3e-2), ("fp8", 0.1)])
def test_values_are_read_out_of_keys_in_every_cache(checkpoint, tmp_path, random, kv_dtype, bound):
    """Heads that are no multiple of a tile's rows, values that are no multiple of 16: the same bits alone and in a batch."""
    shape = {"kv_lora_rank": 40, "qk_rope_head_dim": 8, "num_attention_heads": 6, "num_key_value_heads": 6}
    folder = checkpoint("glm_moe_dsa", **WHOLE, **shape)
    llmc.compile(folder, tmp_path / "a.llmc", kv_dtype=kv_dtype, target=("cpu:native",))
    prompts = [random.integers(3, 250, n).tolist() for n in (50, 70, 33)]
    with llmc.load(tmp_path / "a.llmc", threads=2) as model:
        alone = [model.logits([p])[0] for p in prompts]
        together = model.logits(prompts)
    for p, a, b in zip(prompts, alone, together, strict=True):
        assert a.tobytes() == b.tobytes()
        wanted = original_logits(folder, p)
        assert np.abs(a - wanted).max() < bound * np.abs(wanted).max()


def test_an_artifact_computes_what_the_original_does_from_a_smaller_cache(checkpoint, artifact):
    folder = checkpoint("glm_moe_dsa", **WHOLE)
    path = artifact(folder)
    with llmc.load(path) as model:
        np.testing.assert_allclose(model.logits([IDS])[0], original_logits(folder, IDS), atol=1e-4)
    with open_artifact(path) as opened:
        plan = opened.manifest["memory_plan"]
    assert plan["cache_bytes_per_block"] == 3 * 32 * 4 * 64, (
        "three layers of 32 positions: 40 channels of keys, in 64, which begin with the values"
    )
