"""Whole tiny models: compiled logits against transformers' own, and the same bits however they are computed."""

from __future__ import annotations

import llmc
import numpy as np
import pytest
import torch
from llmc.runtime.cpu_info import available_levels
from models import MODELS, original_logits
from schedules import TOKENS, draw, load, same_bits_however_computed
from tolerances import LOGITS


def close(got, reference, bound):
    """Finite and within `bound` of the reference's size."""
    scale = max(1.0, float(np.abs(reference).max()))
    error = float(np.abs(got - reference).max())
    assert np.isfinite(got).all() and error <= bound * scale, f"error {error:.3g} of {scale:.3g}, allowed {bound * scale:.3g}"


@pytest.mark.parametrize("key", MODELS)
def test_float32_logits_are_those_of_transformers(key, checkpoint, artifact, random):
    folder, ids = checkpoint(key), draw(random)
    with load(artifact(folder)) as model:
        close(model.logits([ids])[0], original_logits(folder, ids), LOGITS["f32", "none"])


@pytest.mark.parametrize(
    ("key", "dtype"), [("llama", "bf16"), ("qwen2", "bf16"), ("olmo2", "bf16"), ("gpt2", "f16"), ("llama", "f16")]
)
def test_half_precision_is_close_to_the_same_weights_in_float32(key, dtype, checkpoint, artifact, random):
    folder, ids = checkpoint(key, dtype=torch.bfloat16 if dtype == "bf16" else torch.float16), draw(random)
    with load(artifact(folder)) as model:
        assert model.artifact.manifest["model"]["dtype"] == dtype
        close(model.logits([ids])[0], original_logits(folder, ids), LOGITS[dtype, "none"])


@pytest.mark.parametrize("key", MODELS)
def test_no_schedule_changes_a_bit(key, checkpoint, artifact, random):
    sequences = [draw(random, n) for n in (TOKENS, 1, 33, 5)]
    same_bits_however_computed(artifact(checkpoint(key)), sequences)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("llama", {"quant": "int4"}),
        ("llama", {"quant": "int4:g32:asym/int8"}),
        ("qwen2", {"quant": "int8"}),
        ("mixtral", {"quant": "int4:g32"}),
        ("mixtral", {"quant": "int4:g32/int8"}),
        ("mixtral", {"dtype": "bf16"}),
        ("qwen3_moe", {"quant": "int8", "dtype": "bf16"}),
        ("gpt_oss", {"quant": "int8:channel/bf16"}),
        ("gemma2", {"quant": "int4", "dtype": "bf16"}),
        ("llama", {"kv_dtype": "int8"}),
        ("llama", {"kv_dtype": "int16"}),
        ("gemma2", {"kv_dtype": "int16", "quant": "int4:g32/int8"}),
        ("qwen3", {"kv_dtype": "fp8"}),
        ("gpt_neox", {"kv_dtype": "f16"}),
        ("qwen3", {"dtype": "bf16"}),
        ("gpt_oss", {"dtype": "bf16"}),
        ("glm_moe_dsa", {"dtype": "bf16"}),
    ],
    ids=str,
)
def test_no_schedule_changes_a_bit_of_a_narrow_model(key, options, checkpoint, artifact, random):
    sequences = [draw(random, n) for n in (TOKENS, 2, 32)]
    same_bits_however_computed(artifact(checkpoint(key), **options), sequences)


@pytest.mark.parametrize(
    ("key", "kv_dtype"),
    [
        ("llama", "int8"),
        ("llama", "f16"),
        ("llama", "int16"),
        ("gemma2", "int16"),
        ("gemma3_text", "int8"),
        ("qwen3", "f16"),
        ("llama", "fp8"),
        ("gpt_neox", "fp8"),
    ],
)
def test_a_narrow_cache_stays_close(key, kv_dtype, checkpoint, artifact, random):
    folder, ids = checkpoint(key), draw(random)
    with load(artifact(folder, kv_dtype=kv_dtype)) as model:
        got, expected = model.logits([ids])[0], original_logits(folder, ids)
        close(got, expected, LOGITS["f32", f"kv:{kv_dtype}"])
        assert np.abs(got - expected).max() > LOGITS["f32", "none"] / 10, "the cache was not narrow at all"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("llama", {"head_dim": 80}),
        ("llama", {"head_dim": 96}),
        ("qwen2", {"hidden_size": 448, "num_attention_heads": 4}),  # heads of 112
        ("llama", {"hidden_size": 112, "num_attention_heads": 14}),  # 7 query heads a key head
        (
            "llama",
            {"hidden_size": 80, "num_attention_heads": 40, "num_key_value_heads": 1},
        ),  # more query heads than a tile has rows
        ("llama", {"num_key_value_heads": 1, "vocab_size": 257}),
        ("qwen2", {"vocab_size": 257, "tie_word_embeddings": True}),
        ("gemma2", {"intermediate_size": 100}),
        ("llama", {"intermediate_size": 100, "hidden_size": 72, "num_hidden_layers": 1, "tie_word_embeddings": True}),
        ("mixtral", {"intermediate_size": 100, "num_hidden_layers": 1, "vocab_size": 257}),
    ],
    ids=lambda v: str(v),
)
def test_odd_shapes(key, changes, checkpoint, artifact, random):
    folder, ids = checkpoint(key, **changes), draw(random)
    with load(artifact(folder)) as model:
        close(model.logits([ids])[0], original_logits(folder, ids), LOGITS["f32", "none"])


@pytest.mark.parametrize("options", [{"quant": "int4:g32"}, {"quant": "int8"}, {"quant": "int4:g128:asym/int8"}], ids=str)
def test_odd_shapes_quantized_change_no_bit(options, checkpoint, artifact, random):
    folder = checkpoint(
        "llama", intermediate_size=100, hidden_size=70, num_attention_heads=7, num_key_value_heads=1, vocab_size=257
    )
    same_bits_however_computed(artifact(folder, **options), [draw(random, n, 257) for n in (40, 3)])


def test_head_dims_that_are_not_whole_tiles_run_in_narrow_caches(checkpoint, artifact, random):
    folder, ids = checkpoint("llama", head_dim=80), draw(random)
    with load(artifact(folder, kv_dtype="int8")) as model:
        close(model.logits([ids])[0], original_logits(folder, ids), LOGITS["f32", "kv:int8"])


@pytest.mark.skipif(not {"x86-64-v3", "x86-64-v4"} <= set(available_levels()), reason="this CPU does not run both levels")
@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("gemma2", {}),
        ("llama", {"quant": "int4:g32:asym/int8", "kv_dtype": "int8"}),
        ("qwen3_moe", {"quant": "int4:g32:asym/int8"}),
        ("gpt_oss", {"quant": "int4", "dtype": "bf16"}),
    ],
    ids=str,
)
def test_both_levels_give_the_same_bits(key, options, checkpoint, artifact, random):
    path, ids = artifact(checkpoint(key), target=("cpu:x86-64-v3", "cpu:x86-64-v4"), **options), draw(random)
    results = []
    for isa in ("x86-64-v3", "x86-64-v4"):
        with load(path, isa=isa, portable=True) as model:
            assert model.executor.level == isa
            results.append(model.logits([ids])[0])
    assert results[0].tobytes() == results[1].tobytes(), f"the levels differ by {np.abs(results[0] - results[1]).max()}"


def test_compiling_twice_in_two_folders_gives_the_same_bytes(checkpoint, tmp_path, monkeypatch):
    """Byte-reproducible: no path, time or order of a hash table enters the artifact, nor does the kernel cache."""
    outs = []
    for name in ("a", "b/deeper"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        monkeypatch.setattr("llmc.toolchain.kernel_cache.cache_folder", lambda folder=folder: folder / "kernels")
        monkeypatch.chdir(folder)
        llmc.compile(str(checkpoint("llama")), folder / f"{folder.name}.llmc", quant="int4:g32", target=("cpu:x86-64-v3",))
        outs.append((folder / f"{folder.name}.llmc").read_bytes())
    assert outs[0] == outs[1]


def test_tied_weights_are_stored_once(checkpoint, artifact):
    tied, own = artifact(checkpoint("llama", tie_word_embeddings=True)), artifact(checkpoint("llama"))
    assert own.stat().st_size - tied.stat().st_size >= 256 * 64 * 4


def test_blocks_that_fell_out_of_the_window_are_free_again(checkpoint, artifact, random):
    """Where no layer sees beyond 8 positions, a long text needs a few blocks alone, and gives the same bits."""
    path, ids = artifact(checkpoint("mistral")), draw(random, 230)
    with load(path) as roomy, load(path, kv_cache=7 * roomy_block(path), max_batch=2, max_tokens=64) as narrow:
        assert narrow.config.blocks == 7 and narrow.config.context == roomy.config.context == 256
        assert roomy.logits(ids).tobytes() == narrow.logits(ids, chunk=33).tobytes()
        alone = roomy.generate(ids[:20], max_tokens=200, ignore_eos=True)
        both = narrow.generate_batch([ids[:20], ids[:50]], max_tokens=200, ignore_eos=True)
        assert both[0].token_ids == alone.token_ids and len(both[1].token_ids) == 200
        assert narrow.engine.scheduler.pool.used == 0
        narrow.engine.scheduler.check_integrity()


def roomy_block(path, reaches=(8,)) -> int:
    from llmc.runtime.artifact import open_artifact

    with open_artifact(path) as opened:
        assert opened.manifest["memory_plan"]["reaches"] == list(reaches)
        return opened.manifest["memory_plan"]["cache_bytes_per_block"]


def test_layers_with_windows_free_their_blocks_beside_layers_that_see_everything(checkpoint, artifact, random):
    """Two layers of seven see everything and keep it; the other five, in three tables, hold their windows alone."""
    kinds = [*["sliding_attention"] * 3, "full_attention"] * 2
    path, ids = artifact(checkpoint("gemma2", num_hidden_layers=7, layer_types=kinds[:6] + kinds[7:])), draw(random, 230)
    block = roomy_block(path, (0, 8, 8, 8))
    with load(path) as roomy, load(path, kv_cache=20 * block, max_batch=2, max_tokens=64) as narrow:
        assert narrow.config.blocks == 20 and narrow.config.context == roomy.config.context == 256
        assert roomy.logits(ids).tobytes() == narrow.logits(ids, chunk=33).tobytes()
        alone = roomy.generate(ids[:20], max_tokens=200, ignore_eos=True)
        both = narrow.generate_batch([ids[:20], ids[:50]], max_tokens=200, ignore_eos=True)
        assert both[0].token_ids == alone.token_ids and len(both[1].token_ids) == 200
        choices = narrow.generate_batch([ids[:50]] * 2, max_tokens=20, ignore_eos=True)
        assert choices[0].token_ids == choices[1].token_ids == both[1].token_ids[:20]
        assert narrow.engine.scheduler.pool.used == 0
        narrow.engine.scheduler.check_integrity()
