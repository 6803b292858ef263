"""A compile over a file takes the weights from it that would come out the same, and gives the bytes that it would give elsewhere."""

from __future__ import annotations

import llmc
import pytest
from llmc.codegen.weights import WeightPacker
from llmc.runtime.artifact import open_artifact


@pytest.fixture
def packed(monkeypatch):
    """Names of the values that were packed."""
    names = []
    real = WeightPacker.pack
    monkeypatch.setattr(WeightPacker, "pack", lambda self, spec: names.append(spec.name) or real(self, spec))
    return names


def compiled(folder, out, **options):
    llmc.compile(str(folder), out, target=("cpu:native",), **{"quant": "int4:g32", "dtype": "bf16", **options})
    return out.read_bytes()


def test_another_context_packs_nothing_again(checkpoint, tmp_path, packed):
    folder = checkpoint("llama")
    compiled(folder, tmp_path / "a.llmc")
    assert packed
    packed.clear()
    again = compiled(folder, tmp_path / "a.llmc", context=64)
    assert not packed
    assert again == compiled(folder, tmp_path / "b.llmc", context=64)


def test_another_scheme_of_one_module_packs_that_alone(checkpoint, tmp_path, packed):
    folder = checkpoint("llama")
    compiled(folder, tmp_path / "a.llmc")
    packed.clear()
    rule = {"scheme": ("model.layers.0.mlp.down_proj=int8",)}
    again = compiled(folder, tmp_path / "a.llmc", **rule)
    assert packed and all("layers.0.mlp.down_proj" in name for name in packed)
    assert again == compiled(folder, tmp_path / "b.llmc", **rule)


@pytest.mark.parametrize("change", ["weights", "source", "algorithm"])
def test_what_would_come_out_otherwise_is_packed(checkpoint, tmp_path, packed, change):
    out = tmp_path / "a.llmc"
    first = compiled(checkpoint("llama"), out)
    packed.clear()
    if change == "weights":  # a byte of the old file's is not what its manifest says
        with open_artifact(out) as opened:
            offset, _ = next(iter(opened.tensors.values()))
        damaged = bytearray(first)
        damaged[offset] ^= 1
        out.write_bytes(damaged)
        assert compiled(checkpoint("llama"), out, force=True) == first
    elif change == "source":
        compiled(checkpoint("llama", rms_norm_eps=1e-4), out, force=True)
    else:
        compiled(checkpoint("llama"), out, algorithm="rotate")
    assert packed
