"""compressed-tensors checkpoints by llm-compressor: packed or naive integers, fp8, mxfp8, mxfp4 and nvfp4."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from ...errors import CheckpointError, UnsupportedError
from ..levels import E2M1
from ..scheme import Scheme, integer_scheme
from ..stored import Stored
from .bits import nibbles, powers_of_two, spread, unpack_stream, unpack_words
from .format import Format, Parts

ACTIVATIONS = {
    ("int", 8, "token"): "int8", ("float", 8, "token"): "fp8", ("float", 8, "group", 128): "fp8-g128", ("float", 8, "group", 32): "mxfp8",
    ("float", 4, "group", 32): "mxfp4", ("float", 4, "tensor_group", 16): "nvfp4",
}  # fmt: skip


class CompressedTensors(Format):
    """Each group of the configuration gives its targets' weights a format. Dequantized as the library does: in the dtype of the scales."""

    name: ClassVar[str] = "compressed-tensors"
    suffixes: ClassVar[tuple[str, ...]] = (
        "weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale",
        "input_global_scale", "input_scale", "input_zero_point",
    )  # fmt: skip

    @classmethod
    def recognizes(cls, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        return config.get("quant_method") == "compressed-tensors"

    def group_of(self, module: str) -> Mapping[str, Any]:
        """The configuration group of a module: its targets name modules, patterns ("re:…") or classes."""
        groups = list(self.config.get("config_groups", {}).values())
        for group in groups:
            for target in group.get("targets", ()):
                if target.startswith("re:") and re.match(target[3:], module):
                    return dict(group)
                if target == module or fnmatch.fnmatchcase(module, f"*.{target}"):
                    return dict(group)
        for group in groups:
            if any(not t.startswith("re:") and "." not in t for t in group.get("targets", ())):
                return dict(group)
        raise CheckpointError(f"no quantization group of config.json targets {module}")

    def read(self, weight: str, parts: Parts) -> Stored:
        group = self.group_of(weight.removesuffix(".weight"))
        stored = self._weights(weight, parts, group)
        inputs = group.get("input_activations")
        if stored.scheme is None or not inputs:
            return stored
        key = (str(inputs.get("type")), int(inputs.get("num_bits", 0)), str(inputs.get("strategy")))
        kind = ACTIVATIONS.get(key) or ACTIVATIONS.get((*key, int(inputs.get("group_size") or 0)))
        if kind is None or not inputs.get("dynamic") or not inputs.get("symmetric", True):
            return stored  # static scales, and numbers that no kernel rounds to: the activations stay as they are
        scale = float(parts["input_global_scale"]()) if kind == "nvfp4" else None
        return replace(stored, scheme=stored.scheme.with_activations(kind), input_scale=scale)

    def _weights(self, weight: str, parts: Parts, group: Mapping[str, Any]) -> Stored:
        settings = group.get("weights") or {}
        form = str(group.get("format") or self.config.get("format"))
        bits, kind = int(settings.get("num_bits", 8)), str(settings.get("type", "int"))
        if form in ("dense", "None"):
            return Stored(parts["weight"], why="stored plainly")
        if form == "nvfp4-pack-quantized":
            return self._nvfp4(weight, parts)
        if form == "mxfp4-pack-quantized":
            packed, scale = self.need(weight, parts, "weight_packed", "weight_scale")
            return _micro(nibbles(packed), torch.tensor(E2M1), scale, "mxfp4")
        if form == "mxfp8-quantized":
            codes, scale = self.need(weight, parts, "weight", "weight_scale")

            def dense() -> torch.Tensor:
                return powers_of_two(scale).repeat_interleave(32, 1)[:, : codes.shape[1]] * codes.float()

            return Stored(dense, Scheme("mxfp8", 32), codes.view(torch.uint8), powers_of_two(scale))
        if form == "pack-quantized":
            return self._packed(weight, parts, bits, settings)
        if form in ("int-quantized", "naive-quantized", "float-quantized"):
            return self._naive(weight, parts, bits, kind, settings)
        raise UnsupportedError(f"compressed-tensors in the format {form} is not supported", "save it as pack-quantized")

    def _packed(self, weight: str, parts: Parts, bits: int, settings: Mapping[str, Any]) -> Stored:
        packed, scale, shape = self.need(weight, parts, "weight_packed", "weight_scale", "weight_shape")
        n, k = (int(v) for v in shape)
        factor = 32 // bits
        unpack = unpack_words if packed.shape[1] == -(-k // factor) else unpack_stream
        codes = unpack(packed, bits)[:, :k]
        offset = 1 << (bits - 1)
        zeros = None
        if "weight_zero_point" in parts:
            stored = parts["weight_zero_point"]()
            if stored.dtype == torch.int32 and stored.shape[0] != n:
                stored = unpack_words(stored.T.contiguous(), bits).T[:n]
            else:
                stored = stored.int() + offset
            zeros = stored
        return _affine(codes, scale, zeros, bits, parts, n, k)

    def _naive(self, weight: str, parts: Parts, bits: int, kind: str, settings: Mapping[str, Any]) -> Stored:
        codes, scale = self.need(weight, parts, "weight", "weight_scale")
        n, k = codes.shape
        if kind == "float":
            block = settings.get("block_structure")
            full = _expanded(scale, n, k, block)

            def dense() -> torch.Tensor:
                return (codes.to(scale.dtype) * full).float()

            if codes.dtype != torch.float8_e4m3fn:
                return Stored(dense, why=f"its codes are {codes.dtype}")
            scales = full[:, :: 128 if block else k].float().contiguous()
            return Stored(dense, Scheme("fp8_e4m3", 128 if block else 0), codes.view(torch.uint8), scales)
        zeros = None
        if "weight_zero_point" in parts:
            zeros = parts["weight_zero_point"]().int() + (1 << (bits - 1))
        return _affine(codes.int() + (1 << (bits - 1)), scale, zeros, bits, parts, n, k)

    def _nvfp4(self, weight: str, parts: Parts) -> Stored:
        packed, scale, total = self.need(weight, parts, "weight_packed", "weight_scale", "weight_global_scale")
        codes = nibbles(packed)
        scales = scale.float() / total.float()
        values = torch.tensor(E2M1)[codes.long()]

        def dense() -> torch.Tensor:
            return (values * spread(scales, 16, codes.shape[1])).bfloat16().float()

        return Stored(dense, Scheme("nvfp4", 16), codes, scales.contiguous())


def _affine(
    codes: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None, bits: int, parts: Parts, n: int, k: int
) -> Stored:
    """(code − zero)·scale in the dtype of the scales; one scale a group of inputs, a channel or the tensor."""
    scale = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    count = scale.shape[1]
    size = -(-k // count)
    size = next((g for g in (16, 32, 64, 128, 256, 512, 1024) if -(-k // g) == count), size) if count > 1 else k
    groups = parts["weight_g_idx"]().long() if "weight_g_idx" in parts else None
    if groups is not None and (int(groups.min()) < 0 or torch.equal(groups, torch.arange(k) // size)):
        groups = None
    index = torch.arange(k) // size if groups is None else groups
    scale = scale.expand(n, -1)
    offset = 1 << (bits - 1)
    value = (codes - offset).to(scale.dtype)
    if zeros is not None:
        zeros = zeros.reshape(-1, 1).expand(n, count) if zeros.ndim < 2 else zeros.expand(n, count)
        value = value - (zeros - offset).to(scale.dtype)[:, index]

    def dense() -> torch.Tensor:
        return (value * scale[:, index]).float()

    scheme = integer_scheme(bits, 0 if size >= k else size, zeros is not None)
    return Stored(
        dense, scheme, codes.to(torch.uint8), scale.float().contiguous(), zeros.float().contiguous() if zeros is not None else None, groups=groups
    )  # fmt: skip


def _expanded(scale: torch.Tensor, n: int, k: int, block: Any) -> torch.Tensor:
    """One scale a weight."""
    if block:
        rows, cols = block
        return scale.repeat_interleave(rows, 0)[:n].repeat_interleave(cols, 1)[:, :k]
    return (scale.reshape(-1, 1) if scale.ndim < 2 else scale).expand(n, k)


def _micro(codes: torch.Tensor, table: torch.Tensor, scale: torch.Tensor, kind: str) -> Stored:
    scales = powers_of_two(scale)
    return Stored(lambda: table[codes.long()] * spread(scales, 32, codes.shape[1]), Scheme(kind, 32), codes, scales)
