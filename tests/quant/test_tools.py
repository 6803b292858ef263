"""Other people's quantizers behind --algorithm TOOL:METHOD, by one that a test brings."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import llmc
import numpy as np
import pytest
from llmc.errors import EnvironmentLacks, UnsupportedError, UsageError
from llmc.quant.tools import tool
from server import tiny

SCRIPT = Path(__file__).with_name("own_tool.py")
own_tool = types.ModuleType("own_tool")
exec(SCRIPT.read_text(), own_tool.__dict__)


@pytest.fixture
def source(tmp_path):
    where = tiny.save_model(tmp_path / "source", hidden_size=64, intermediate_size=128, head_dim=16)
    tiny.save_tokenizer(where)
    return where


@pytest.fixture(autouse=True)
def brought(monkeypatch):
    """The tool as an entry point would add it."""
    found = {**tool.catalog(), "own-tool": tool.Tool("own-tool", SCRIPT, own_tool)}
    monkeypatch.setattr(tool, "catalog", lambda: found)


def compiled(source: Path, out: Path, **options) -> llmc.pipeline.CompileReport:
    return llmc.compile(source, out, target=("cpu:native",), **{"quant": "int4:g32", **options})


def logits(path: Path) -> np.ndarray:
    with llmc.load(path) as model:
        return model.logits([[5, 9, 33, 77, 120, 200]])[0]


@pytest.mark.parametrize("asymmetric", [False, True])
def test_codes_of_a_tool_are_kept(source, tmp_path, asymmetric):
    theirs = compiled(source, tmp_path / "a.llmc", algorithm="own-tool:nearest", asymmetric=asymmetric)
    compiled(source, tmp_path / "b.llmc", asymmetric=asymmetric)
    assert np.array_equal(logits(tmp_path / "a.llmc"), logits(tmp_path / "b.llmc"))
    assert any("int4" in scheme for scheme in theirs.quant.values())
    assert theirs.conformance["kl_mean"] > 0, "compared with the original, not with what the tool wrote"


def test_the_artifact_names_the_original_and_the_tool(source, tmp_path):
    from llmc.runtime.artifact import open_artifact

    compiled(source, tmp_path / "a.llmc", algorithm="own-tool:nearest")
    compiled(source, tmp_path / "b.llmc")
    with open_artifact(tmp_path / "a.llmc") as one, open_artifact(tmp_path / "b.llmc") as other:
        assert one.manifest["source"] == other.manifest["source"]
        assert one.manifest["recipe"]["algorithm"] == "own-tool:nearest" and one.manifest["recipe"]["quant"] == "int4:g32"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.llmc", "b.llmc", "source"], "nothing else is left"


def test_rules_keep_a_tool_from_modules(source, tmp_path):
    report = compiled(source, tmp_path / "a.llmc", algorithm="own-tool:nearest", scheme=("*down_proj=int8", "lm_head=bf16"))
    assert report.quant["model.layers.*.mlp.down_proj"].startswith("int8:channel")
    assert report.quant["model.layers.*.mlp.up_proj"].startswith("int4:g32")
    assert report.quant["lm_head"] == "bf16" and report.quant["model.embed_tokens"].startswith("int8:channel")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"algorithm": "own-tol:nearest"}, UsageError, "own-tool"),
        ({"algorithm": "own-tool:nearst"}, UsageError, "nearest"),
        ({"algorithm": "own-tool:nearest", "quant": "int8"}, UnsupportedError, "4 bits alone"),
        ({"algorithm": "own-tool:nearest", "quant": "none"}, UsageError, "nothing to quantize"),
        ({"algorithm": "own-tool:nearest", "quant": "auto", "max_kl": 0.1}, UsageError, "auto"),
        ({"algorithm": "own-tool:nearest", "tool_python": "/no/python"}, EnvironmentLacks, "cannot be run"),
        ({"algorithm": "own-tool:broken"}, EnvironmentLacks, "the second layer has no inverse"),
        ({"algorithm": "gptq", "tool_python": sys.executable}, UsageError, "no effect"),
    ],
)
def test_errors_name_the_reason(source, tmp_path, options, error, says):
    with pytest.raises(error) as caught:
        compiled(source, tmp_path / "a.llmc", **options)
    assert says in str(caught.value)
    assert not (tmp_path / "a.llmc").exists() and not list(tmp_path.glob(".llmc*"))


def test_a_missing_tool_says_how_to_install_it(source, tmp_path, monkeypatch):
    monkeypatch.setattr(own_tool, "PACKAGES", ("no_such_package",))
    with pytest.raises(EnvironmentLacks, match="pip install numpy"):
        compiled(source, tmp_path / "a.llmc", algorithm="own-tool:nearest")


@pytest.mark.parametrize(
    ("algorithm", "quant"),
    [
        ("gptqmodel:gptq", "int4:g32"),
        ("gptqmodel:gptq", "int3:g32:asym"),
        ("gptqmodel:awq", "int4:g32:asym"),
        ("gptqmodel:rtn", "int4:g32"),
        ("optimum:gptq", "int4:g32"),
        ("optimum:gptq", "int8:g32:asym/bf16"),
    ],
)
def test_tools_of_others_choose_codes(interop_python, source, tmp_path, algorithm, quant):
    """Their codes are near enough to the weights: nearer than those of one bit fewer, rounded to nearest."""
    report = compiled(source, tmp_path / "a.llmc", algorithm=algorithm, quant=quant, tool_python=interop_python)
    bits = int(quant[3])
    fewer = compiled(source, tmp_path / "b.llmc", quant=quant.replace(str(bits), str(6 if bits == 8 else bits - 1), 1))
    assert any(scheme.startswith(quant[:4]) for scheme in report.quant.values())
    assert report.conformance["kl_mean"] < fewer.conformance["kl_mean"]
