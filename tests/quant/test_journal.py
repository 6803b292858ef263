"""A calibration that is killed goes on where it was: the same codes, nothing chosen twice, nothing half written."""

from __future__ import annotations

import pytest
import torch
from llmc.errors import InputError
from llmc.passes.order import raising_passes
from llmc.passes.quantize import Quantize, calibrated_nodes
from llmc.pipeline import front_end, parameters
from llmc.quant import calibrate as module
from llmc.quant.algorithms.registry import parse_algorithm
from llmc.quant.formats.registry import open_checkpoint
from llmc.quant.journal import Journal
from server import tiny


class Killed(Exception):
    pass


class Counting:
    """A rounding that counts its weights."""

    def __init__(self, rounding):
        self.rounding, self.compensates, self.count = rounding, rounding.compensates, 0

    def quantize(self, *args):
        self.count += 1
        return self.rounding.quantize(*args)


@pytest.mark.parametrize("algorithm", ["gptq", "awq+gptq"])
def test_a_killed_calibration_goes_on(tmp_path, monkeypatch, algorithm):
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    source = open_checkpoint(str(tiny.checkpoint()))
    captured, imported = front_end(source, "f32", 64)
    params = parameters(source, captured, imported)
    graph = imported.graph
    for step in raising_passes(imported.buffers):
        graph = step.run(graph)
    plan = calibrated_nodes(graph, Quantize("int4:g32").plan(graph))
    tokens = torch.randint(5, 300, (8, 32), generator=torch.Generator().manual_seed(0))
    chosen = parse_algorithm(algorithm)

    def calibrate(rounding, journal, stop=10**9, disk=None):
        def progress(nodes, count):
            for i, node in enumerate(nodes):
                if i == stop:
                    raise Killed
                yield node

        return module.calibrate(graph, params, tokens, plan, rounding, chosen.scaling, journal, progress, disk)

    whole = calibrate(Counting(chosen.rounding), None)
    (tmp_path / "disk").mkdir()
    from_files = calibrate(Counting(chosen.rounding), None, disk=tmp_path / "disk")
    assert all(torch.equal(from_files.codes[n][0].codes, c[0].codes) for n, c in whole.codes.items())
    assert not list((tmp_path / "disk").iterdir())
    moving = sum(n.outputs[0].name not in graph.static_values() for n in graph.nodes)
    counts = []
    for share in (0.3, 0.6, 0.8):
        counting = Counting(chosen.rounding)
        with pytest.raises(Killed):
            calibrate(counting, Journal(tmp_path / "work", "key"), int(moving * share))
        counts.append(counting.count)
        assert not list((tmp_path / "work").glob("*.part"))
    last = Counting(chosen.rounding)
    found = calibrate(last, Journal(tmp_path / "work", "key"))
    assert last.count < len(plan) / 2
    assert sum(counts) + last.count < 1.6 * len(plan)
    assert found.codes.keys() == whole.codes.keys()
    for name, codes in whole.codes.items():
        assert torch.equal(found.codes[name][0].codes, codes[0].codes)
        assert torch.equal(found.codes[name][0].scales, codes[0].scales)
    for param in ("model.layers.0.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"):
        assert torch.equal(found.params(param), whole.params(param))


def test_another_calibrations_folder_is_refused(tmp_path):
    Journal(tmp_path / "a", "one")
    with pytest.raises(InputError, match="another calibration"):
        Journal(tmp_path / "a", "two")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="other files"):
        Journal(tmp_path / "b", "one")
    (tmp_path / "a" / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        Journal(tmp_path / "a", "one").load()
