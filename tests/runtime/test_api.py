"""The Python interface: what it takes, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import llmc
import numpy as np
import pytest
from llmc.errors import RequestError, UsageError


@pytest.fixture
def model(tiny):
    with llmc.load(tiny) as opened:
        yield opened


def test_logits_of_one_sequence_and_of_several(model, random):
    ids = random.integers(3, 256, 9).tolist()
    one, (first, second) = model.logits(ids), model.logits([ids, ids[:4]])
    assert one.shape == (9, 256) and np.array_equal(one, first) and np.array_equal(first[:4], second)
    assert np.array_equal(model.logits(np.array(ids)), one)
    with pytest.raises(RequestError, match="no tokens"):
        model.logits([])


def test_a_model_that_is_closed_says_so(tiny):
    model = llmc.load(tiny)
    model.close()
    for call in (lambda: model.generate([1]), lambda: model.logits([1]), lambda: list(model.stream([1]))):
        with pytest.raises(UsageError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_token": 3}, "max_tokens"), ({"temperature": "1"}, "number"), ({"seed": 2**70}, "64 bits"), ({"max_tokens": 0}, "at least one"),
        ({"max_tokens": 2.5}, "whole number"), ({"logit_bias": {300: 1.0}}, "vocabulary"), ({"stop": [""]}, "stop"), ({"top_p": 0}, "between"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_are_wrong_are_named(model, settings, said):
    with pytest.raises(RequestError, match=said):
        model.generate([5, 6], **settings)


def test_a_bad_prompt_leaves_no_request_behind(model):
    with pytest.raises(RequestError, match="vocabulary"):
        model.generate_batch([[5], [99999]], max_tokens=2)
    assert model.engine.idle
    assert len(model.generate_batch([[5], [6]], max_tokens=2)) == 2


def test_a_bias_decides(model):
    assert model.generate([5, 6], max_tokens=3, logit_bias={77: 1e6}, ignore_eos=True).token_ids == [77] * 3


def test_wrong_options_of_a_compile_are_named(checkpoint, tmp_path):
    for options, said in (
        ({"quant": 4}, "quant"),
        ({"context": "64"}, "context"),
        ({"quants": "int4"}, "quant"),
        ({"strict": 1}, "strict"),
    ):
        with pytest.raises(UsageError, match=said):
            llmc.compile(checkpoint("llama"), tmp_path / "m.llmc", **options)
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_refused(checkpoint, tmp_path):
    import shutil

    from llmc.errors import CheckpointError
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint("llama"), tmp_path / "source")
    weights = load_file(tmp_path / "source" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="up_proj"):
        llmc.compile(tmp_path / "source", tmp_path / "m.llmc", target="cpu:native")
    assert not (tmp_path / "m.llmc").exists()
