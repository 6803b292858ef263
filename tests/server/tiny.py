"""One tiny llama with a real byte-level BPE tokenizer and a chat template, compiled once a process for all tests of the command line, the server and the Python API."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

CONTEXT = 2048
VOCAB = 384
CORPUS = [
    "The keeper of the lighthouse counted ships every evening and read the list aloud to the gulls.",
    "def greatest_common_divisor(a, b):\n    while b:\n        a, b = b, a % b\n    return a\n",
    "Der Fluss trat über die Ufer, und die Brücke musste gesperrt werden. 1, 1, 2, 3, 5, 8, 13.",
    "Once upon a time there was a small model that knew nothing at all, and said so at great length.",
] * 8
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.content == 'refuse me' %}{{ raise_exception('I refuse') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = "The river keeps its own time. " + " ".join(
    f"Line {i}: the small ship number {i * 7 % 13} waits, and über the hill a bell rings {i} times.\n" for i in range(60)
)


@functools.cache
def folder() -> Path:
    """A folder of this process, removed at its end."""
    made = Path(tempfile.mkdtemp(prefix="llmc-tests-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def save_tokenizer(where: Path, *, bos: bool = True, extra: tuple[str, ...] = ()) -> None:
    """tokenizer.json and tokenizer_config.json: ids 0 pad, 1 bos, 2 eos, then the roles' marks, bytes and merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens(list(extra))
    made.save(str(where / "tokenizer.json"))
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
        "model_max_length": CONTEXT,
    }
    (where / "tokenizer_config.json").write_text(json.dumps(config))


def save_model(where: Path, *, seed: int = 0, kind: str = "llama", **changes: Any) -> Path:
    """A random float32 checkpoint in `where`, without a tokenizer."""
    import math

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**fields, **changes})).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim < 2:
                value.add_(noise * 0.1)
            else:
                value.copy_(
                    noise if "embed" in name else noise / math.sqrt(value.shape[-1]) * (2.5 if "lm_head" in name else 1.0)
                )
    where.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(where)
    (where / "generation_config.json").unlink(missing_ok=True)
    return where


@functools.cache
def checkpoint() -> Path:
    """The checkpoint that nearly every test uses: float32 llama, tokenizer that adds a BOS, chat template."""
    where = save_model(folder() / "checkpoint")
    save_tokenizer(where)
    return where


def variant(name: str) -> Path:
    """A fresh copy of the checkpoint, for a test to change."""
    where = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder()))
    shutil.copytree(checkpoint(), where, dirs_exist_ok=True)
    return where


def capturing_once() -> Any:
    """A pipeline.front_end that captures each config once, for it takes longer than all the rest of a tiny compile."""
    from llmc import pipeline

    def front_end(opened: Any, dtype: str, context: int, trust_remote_code: bool = False) -> Any:
        key = (json.dumps(opened.config.to_dict(), sort_keys=True, default=str).replace(str(opened.source), ""), dtype, context)
        if key not in _captures:
            _captures[key] = _REAL.setdefault("front_end", pipeline.front_end)(opened, dtype, context, trust_remote_code)
        return _captures[key]

    _REAL.setdefault("front_end", pipeline.front_end)
    return front_end


def compiled(source: Path, name: str, **options: Any) -> Path:
    """An artifact for this CPU alone."""
    import llmc
    from llmc import pipeline

    out = folder() / f"{name}.llmc"
    before, pipeline.front_end = pipeline.front_end, capturing_once()
    try:
        llmc.compile(str(source), out, **{"target": ("cpu:native",), **options})
    finally:
        pipeline.front_end = before
    return out


_REAL: dict[str, Any] = {}
_captures: dict[Any, Any] = {}


@functools.cache
def artifact() -> Path:
    """The checkpoint, compiled."""
    return compiled(checkpoint(), "tiny")


@functools.cache
def without_tokenizer() -> Path:
    where = variant("no-tokenizer")
    (where / "tokenizer.json").unlink()
    (where / "tokenizer_config.json").unlink()
    return compiled(where, "ids-only")


@functools.cache
def without_bos() -> Path:
    where = variant("no-bos")
    save_tokenizer(where, bos=False)
    return compiled(where, "no-bos")


@functools.cache
def wide_tokenizer() -> Path:
    """An artifact whose tokenizer knows one token more than the model has."""
    where = variant("wide")
    save_tokenizer(where, extra=("<|outside|>",))
    return compiled(where, "wide")


def rewritten(source: Path, out: Path, change: Any = lambda manifest: manifest, **members: bytes) -> Path:
    """The artifact made again, in canonical form and with all hashes right, with its manifest or members changed."""
    import hashlib

    from llmc.runtime.archive import write_archive
    from llmc.runtime.artifact import MANIFEST, open_artifact

    with open_artifact(source) as opened:
        manifest = json.loads(json.dumps(opened.manifest))
        content = {
            name: members.get(name.replace("/", "_").replace(".", "_"), opened.read(name))
            for name in opened.members
            if name != MANIFEST
        }
    for entry in manifest["members"]:
        entry.update(bytes=len(content[entry["name"]]), sha256=hashlib.sha256(content[entry["name"]]).hexdigest())
    made = change(manifest)
    raw = made if isinstance(made, bytes) else json.dumps(made, indent=1, ensure_ascii=False).encode() + b"\n"
    with out.open("wb+") as stream:
        write_archive(
            stream,
            [(MANIFEST, len(raw), [raw]), *((n, len(b), [b]) for n, b in content.items())],
            hashlib.sha256(raw).hexdigest(),
        )
    return out
