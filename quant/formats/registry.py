"""All formats, and opening a checkpoint of any of them. A new format costs its file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ...compiler.checkpoint import Checkpoint
from ...compiler.checkpoint import open_checkpoint as open_plain
from ...errors import CheckpointError, LlmcError, UnsupportedError
from ..stored import Stored
from .awq import Awq, AwqWriter
from .bitsandbytes import BitsAndBytes
from .compressed_tensors import CompressedTensors, CompressedTensorsWriter
from .format import Format
from .fp8 import Fp8
from .gguf import OWN_VALUES, dequantized, stored_blocks
from .gptq import Gptq, GptqWriter
from .hqq import Hqq
from .mxfp4 import Mxfp4
from .quanto import Quanto
from .torchao import TorchAo
from .writer import Writer

FORMATS: tuple[type[Format], ...] = (Gptq, Awq, CompressedTensors, Fp8, Mxfp4, BitsAndBytes, Hqq, TorchAo, Quanto)

WRITERS: dict[str, type[Writer]] = {w.name: w for w in (CompressedTensorsWriter, GptqWriter, AwqWriter)}


def open_checkpoint(source: str | Path, *, trust_remote_code: bool = False, weights: bool = True) -> Checkpoint:
    """Open a checkpoint, whoever wrote it: stored weights read as their dequantized values, and `stored` has their codes.

    `weights=False` is content with a config alone. Raises CheckpointError, EnvironmentLacks, and UnsupportedError for a format that is not known.
    """
    checkpoint = open_plain(str(source), trust_remote_code=trust_remote_code, weights=weights)
    if checkpoint.gguf_architecture:
        return _with_blocks(checkpoint)
    names = frozenset(checkpoint.readers)
    found = next((f for f in FORMATS if f.recognizes(checkpoint.quantization, names)), None)
    if found is None:
        method = checkpoint.quantization.get("quant_method")
        if method:
            raise UnsupportedError(
                f"{source} is quantized by {method}, which is not supported", f"known: {', '.join(f.name for f in FORMATS)}"
            )
        return checkpoint
    form = found(checkpoint.quantization, checkpoint.metadata)
    plain: dict[str, Callable[[], torch.Tensor]] = {}
    grouped: dict[str, dict[str, Callable[[], torch.Tensor]]] = {}
    for name, reader in checkpoint.readers.items():
        part = form.part(name)
        if part is None:
            plain[name] = reader
        else:
            grouped.setdefault(part[0], {})[part[1]] = reader
    stored: dict[str, Callable[[], Stored]] = {}
    for weight, parts in grouped.items():
        if form.complete(parts):
            stored[weight] = partial(_read, str(source), form, weight, parts)
            plain[weight] = partial(_dense, stored[weight])
        elif "weight" in parts:
            plain[weight] = parts["weight"]
    return replace(checkpoint, readers=plain, stored=stored, cache=form.cache(checkpoint.readers))


def _with_blocks(checkpoint: Checkpoint) -> Checkpoint:
    """A GGUF file's quantized tensors as stored weights, and those values that gguf-py does not know."""

    def read(name: str) -> Stored:
        kind, raw, shape = checkpoint.stored[name]()
        stored = stored_blocks(kind, raw, torch.Size(shape[:-1]).numel(), partial(checkpoint.read, name))
        return stored.reshaped(shape)

    def values(name: str) -> torch.Tensor:
        kind, raw, shape = checkpoint.stored[name]()
        return dequantized(kind, raw).reshape(shape) if kind in OWN_VALUES else checkpoint.readers[name]()

    return replace(
        checkpoint,
        readers={n: partial(values, n) if n in checkpoint.stored else r for n, r in checkpoint.readers.items()},
        stored={n: partial(read, n) for n in checkpoint.stored},
    )


BROKEN = (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
"""What reading damaged parts ends in."""


def _read(source: str, form: Format, weight: str, parts: Mapping[str, Callable[[], torch.Tensor]]) -> Stored:
    """A stored weight; whatever its parts or the configuration make a format stumble over is a CheckpointError."""

    def damaged(error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{source}: the {form.name} weight {weight} cannot be read: {error}",
            "the checkpoint is damaged, or its config.json is not its own",
        )

    try:
        stored = form.read(weight, parts).settled()
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {weight}: {error.message}", error.hint) from error
    except LlmcError:
        raise
    except BROKEN as error:
        raise damaged(error) from error

    def dense() -> torch.Tensor:
        try:
            return stored.dense()
        except BROKEN as error:
            raise damaged(error) from error

    return replace(stored, dense=dense)


def _dense(read: Callable[[], Stored]) -> torch.Tensor:
    return read().dense()
