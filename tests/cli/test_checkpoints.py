"""Checkpoints that cannot be compiled: exit 4, a message that names the culprit, and nothing left behind."""

from __future__ import annotations

import json
import os
import pickle

import pytest
from server import tiny

COMPILE = ("-o", "a.llmc", "--target", "cpu:native")


@pytest.fixture
def broken():
    return tiny.variant("broken")


def refused(fails, where, *words, status=4):
    message = fails(status, "compile", where, *COMPILE)
    for word in words:
        assert word in message, message
    assert os.listdir(".") == []
    return message


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "not a hub id", "x.gguf"])
def test_a_path_that_is_not_there(fails, here, name):
    refused(fails, name, "CheckpointError")


def test_an_empty_folder_and_another_file(fails, here, tmp_path):
    refused(fails, tmp_path / "here", "config.json")
    other = tmp_path / "notes.txt"
    other.write_text("x")
    refused(fails, other, "GGUF")


def test_a_hub_id_without_a_network_is_5(fails, here, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused(fails, "no-such-org-zq/no-such-model", status=5)
    assert "cannot be reached" in message


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_safetensors(fails, here, broken, keep):
    file = broken / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    refused(fails, broken, "model.safetensors")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "\x00", "{}", '{"model_type": "llama"', '{"model_type": "no-such-model"}', '{"model_type": 3}']
)
def test_a_corrupt_config(fails, here, broken, text):
    (broken / "config.json").write_text(text)
    refused(fails, broken, "config.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", "two"),
        ("hidden_size", -64),
        ("num_attention_heads", 0),
        ("hidden_act", "no-such-act"),
        ("vocab_size", 0),
        ("max_position_embeddings", -5),
        ("rope_parameters", {"rope_type": "no-such-rope"}),
        ("num_hidden_layers", 3),
        ("head_dim", None),
        ("num_key_value_heads", 3),
    ],
)
def test_a_config_with_a_wrong_value(llmc, here, broken, field, value):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, field: value}))
    if (field, value) == ("head_dim", None):
        return
    llmc("compile", broken, *COMPILE, "--json", status=4)
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    ("index", "word"),
    [
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "model-00001-of-00002.safetensors"),
        ({}, ""),
        ({"weight_map": []}, ""),
        ({"weight_map": {}}, ""),
        ([], "index"),
        ({"weight_map": {"a": 3}}, ""),
    ],
)
def test_an_index_that_names_what_is_not_there(fails, here, broken, index, word):
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(fails, broken, word)


def test_a_tensor_too_few(fails, here, broken):
    from safetensors.torch import load_file, save_file

    tensors = load_file(broken / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, broken / "model.safetensors")
    refused(fails, broken, "model.layers.1.mlp.up_proj")


def test_a_tensor_of_another_shape(fails, here, broken):
    from safetensors.torch import load_file, save_file

    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"][:90].contiguous()
    save_file(tensors, broken / "model.safetensors")
    refused(fails, broken, "model.layers.1.mlp.up_proj", "[90, 64]")


def test_a_pickle_with_a_hostile_global(fails, here, broken):
    class Hostile:
        def __reduce__(self):
            return (os.system, (f"touch {broken}/pwned",))

    import torch

    (broken / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.zeros(64), "x": Hostile()}, broken / "pytorch_model.bin")
    refused(fails, broken, "pytorch_model.bin")
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Hostile()}))
    refused(fails, broken, "pytorch_model.bin")
    assert not (broken / "pwned").exists()


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"\x80\x04."])
def test_a_pickle_that_is_none(fails, here, broken, data):
    (broken / "model.safetensors").unlink()
    (broken / "pytorch_model.bin").write_bytes(data)
    refused(fails, broken, "pytorch_model.bin")


@pytest.mark.parametrize("data", [b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40, b"GGUF" + bytes(200)])
def test_a_damaged_gguf(fails, here, tmp_path, data):
    file = tmp_path / "x.gguf"
    file.write_bytes(data)
    refused(fails, file, "x.gguf")


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"\xff", b"[]"])
def test_a_damaged_tokenizer(fails, here, broken, data):
    (broken / "tokenizer.json").write_bytes(data)
    refused(fails, broken, "tokenizer")


def test_python_code_in_the_checkpoint_is_not_run(fails, here, broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(
        json.dumps(
            {**config, "model_type": "own-model", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
        )
    )
    (broken / "evil.py").write_text(f"open({str(broken / 'pwned')!r}, 'w')\n")
    assert "--trust-remote-code" in fails(3, "compile", broken, *COMPILE)
    assert not (broken / "pwned").exists()


def test_a_pickled_checkpoint_gives_the_same_weights(llmc, here, broken):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    llmc("compile", broken, *COMPILE, "--json")
    ids = [
        llmc("generate", a, "--prompt", "The keeper", "--max-tokens", "8", "--json").json["token_ids"]
        for a in ("a.llmc", tiny.artifact())
    ]
    assert ids[0] == ids[1]
