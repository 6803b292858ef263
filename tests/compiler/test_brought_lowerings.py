"""An operation that llmc does not know: refused with its line, compiled with a lowering that another package brings."""

from __future__ import annotations

import llmc
import numpy as np
import pytest
import torch
from llmc.compiler import importer
from llmc.compiler.ir.ops.pointwise import Pointwise
from llmc.errors import UnsupportedError
from models import original_logits
from transformers.activations import ACT2FN

IDS = [5, 9, 33, 17, 2, 40]


@torch.library.custom_op("llmc_test::swoosh", mutates_args=())
def swoosh(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tanh(x)


@swoosh.register_fake
def _(x):
    return torch.empty_like(x)


class Swoosh(torch.nn.Module):
    def forward(self, x):
        return torch.ops.llmc_test.swoosh(x)


def lowered(im, node, args, kwargs):
    kind = args[0].type.dtype
    return im.emit(Pointwise("mul", kind), args[0], im.emit(Pointwise("tanh", kind), args[0]))


@pytest.fixture
def folder(checkpoint, monkeypatch):
    monkeypatch.setitem(ACT2FN, "swoosh", Swoosh)
    return checkpoint("llama", hidden_act="swoosh")


def test_it_is_refused_with_its_line(folder, tmp_path):
    with pytest.raises(UnsupportedError) as caught:
        llmc.compile(folder, tmp_path / "a.llmc", target=("cpu:native",))
    said = str(caught.value)
    assert "llmc_test.swoosh.default has no lowering" in said and "mlp" in said and "test_brought_lowerings.py" in said


def test_a_package_brings_its_lowering(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "brought", lambda: {"llmc_test.swoosh": lowered})
    llmc.compile(folder, tmp_path / "a.llmc", target=("cpu:native",))
    with llmc.load(tmp_path / "a.llmc") as model:
        np.testing.assert_allclose(model.logits([IDS])[0], original_logits(folder, IDS), atol=1e-4)
