"""A model split between CPU and GPU: the whole step, the CPU's part by its kernels and the GPU's by the interpreter."""

from __future__ import annotations

import pytest
from interpreted import FLIPS, interpreted
from llmc.codegen.cut import layer_of
from llmc.errors import ArtifactError, UnsupportedError, UsageError
from llmc.rebuild import check_rebuild
from llmc.runtime.api import load
from llmc.runtime.artifact import open_artifact
from llmc.runtime.executors.launch import LaunchExecutor

SPLIT = [("llama", {"quant": "int4:g32"}), ("qwen3_next", {})]


@pytest.mark.parametrize(("key", "options"), SPLIT, ids=[key for key, _ in SPLIT])
def test_layers_before_the_gpus_run_on_the_cpu(key, options, checkpoint, artifact, random, tmp_path):
    path = artifact(checkpoint(key), target=("cpu:native", "cuda:sm_90"), gpu_layers=1, dtype="bf16", **options)
    _, facts = interpreted(path, random, tmp_path, 2e-2, FLIPS.get(key, 0))
    assert facts["first"]["layers"] == len({layer_of(m) for k in facts["first"]["kernels"] for m in k["modules"]} - {None})
    with load(path, target="cpu") as model:
        weights = model.artifact.manifest["memory_plan"]["weight_bytes"]
    assert 0 < facts["first"]["device_weight_bytes"] < weights
    assert all(c.ok for c in check_rebuild(open_artifact(path)))


def test_a_split_names_what_it_cannot(checkpoint, artifact):
    with pytest.raises(UsageError, match="no target is a GPU"):
        artifact(checkpoint("llama"), gpu_layers=1)
    with pytest.raises(UnsupportedError, match="no kernel"):  # a state in the GPU's part
        artifact(checkpoint("mamba"), target=("cuda:sm_90",), gpu_layers=1)


def test_a_plan_that_goes_on_after_other_layers_does_not_run_alone(checkpoint, artifact):
    path = artifact(checkpoint("llama"), target=("cpu:native", "cuda:sm_90"), gpu_layers=1, dtype="bf16", quant="int4:g32")
    sizes = dict.fromkeys(("max_tokens", "max_sequences", "max_rows", "context", "blocks"), 8)
    with open_artifact(path) as opened, pytest.raises(ArtifactError, match="goes on after other layers"):
        LaunchExecutor(opened, "cuda:sm_90", None, **sizes)


def test_more_layers_than_there_are_run_on_the_gpu_alone(checkpoint, artifact):
    path = artifact(checkpoint("llama"), target=("cuda:sm_90",), gpu_layers=99, quant="int4:g32", dtype="bf16")
    with open_artifact(path) as opened:
        assert "first" not in opened.manifest["targets"][0]
        assert any("no more layers" in note for note in opened.manifest["notes"])
