"""compressed-tensors checkpoints by llm-compressor: packed or naive integers, fp8, mxfp8, mxfp4 and nvfp4."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from ...compiler.checkpoint import StoredCache
from ...errors import CheckpointError, UnsupportedError
from ..algorithms.rtn import Codes
from ..levels import E2M1
from ..scheme import Scheme, integer_scheme
from ..stored import Stored
from .bits import nibbles, pack_nibbles, pack_words, powers_of_two, spread, unpack_stream, unpack_words
from .format import Format, Parts
from .writer import Writer, zero_points

ACTIVATIONS = {
    ("int", 8, "token"): "int8", ("float", 8, "token"): "fp8", ("float", 8, "group", 128): "fp8-g128", ("float", 8, "group", 32): "mxfp8",
    ("float", 4, "group", 32): "mxfp4", ("float", 4, "tensor_group", 16): "nvfp4",
}  # fmt: skip
STATIC = {("int", 8): "int8-static", ("float", 8): "fp8-static"}


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

    def cache(self, readers: Parts) -> StoredCache | None:
        scheme = self.config.get("kv_cache_scheme")
        if not scheme:
            return None
        kind = {"float": "fp8", "int": "int8"}.get(str(scheme.get("type")))
        if kind is None or int(scheme.get("num_bits", 8)) != 8 or not scheme.get("symmetric", True):
            raise UnsupportedError(
                f"a cache of {scheme.get('num_bits')}-bit {scheme.get('type')} numbers is not supported", "give --kv-dtype"
            )
        scales = {}
        for name in readers:
            module, _, last = name.rpartition(".")
            if last == "k_scale" and f"{module}.v_scale" in readers:
                k, v = readers[name]().float(), readers[f"{module}.v_scale"]().float()
                if k.numel() == v.numel() == 1:  # one a tensor; finer ones give way to one a position
                    scales[module] = (float(k), float(v))
        return StoredCache(kind, scales)

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
        self._refuse_transforms()
        group = self.group_of(weight.removesuffix(".weight"))
        stored = self._weights(weight, parts, group)
        inputs = group.get("input_activations")
        if stored.scheme is None or not inputs:
            return stored
        number = (str(inputs.get("type")), int(inputs.get("num_bits", 0)))
        key = (*number, str(inputs.get("strategy")))
        kind = ACTIVATIONS.get(key) or ACTIVATIONS.get((*key, int(inputs.get("group_size") or 0)))
        symmetric, dynamic = bool(inputs.get("symmetric", True)), inputs.get("dynamic")
        if dynamic and key[2] == "tensor" and symmetric and (*number, "token") in ACTIVATIONS:
            note = "activations that the checkpoint scales by the tensor are scaled by the token: a request's result must not depend on others"
            return replace(stored, scheme=stored.scheme.with_activations(ACTIVATIONS[*number, "token"]), note=note)
        if dynamic and kind == "int8" and not symmetric:
            return replace(stored, scheme=stored.scheme.with_activations("int8-asym"))
        if not dynamic and key[2] == "tensor" and symmetric and number in STATIC and "input_scale" in parts:
            scale = float(parts["input_scale"]().float().flatten()[0])
            return replace(stored, scheme=stored.scheme.with_activations(STATIC[number]), input_scale=scale)
        if kind is None or not dynamic or not symmetric:
            said = f"{'dynamic' if dynamic else 'static'} {number[1]}-bit {number[0]} by the {key[2]}{'' if symmetric else ', asymmetric'}"
            return replace(
                stored,
                note=f"activations stay in the model's dtype: no kernel rounds them to what the checkpoint asks for ({said})",
            )
        scale_of = float(parts["input_global_scale"]()) if kind == "nvfp4" else None
        return replace(stored, scheme=stored.scheme.with_activations(kind), input_scale=scale_of)

    def _refuse_transforms(self) -> None:
        """Raise UnsupportedError for what would change the values and is not applied here."""
        transforms = (self.config.get("transform_config") or {}).get("config_groups") or {}
        places = {str(a.get("location")) for t in transforms.values() for a in t.get("apply", ())}
        online = places - {"weight_input", "weight_output"}
        if online:
            raise UnsupportedError(
                f"compressed-tensors with rotations at run time ({', '.join(sorted(online))}) is not supported",
                "save it with rotations folded into the weights",
            )
        sparse = str((self.config.get("sparsity_config") or {}).get("format") or "dense")
        if sparse != "dense":
            raise UnsupportedError(f"compressed-tensors with sparse weights ({sparse}) is not supported", "save it dense")

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
            count = scale.shape[1] if scale.ndim == 2 else 1
            size = -(-k // count) if count > 1 else 0
            scales = full[:, :: size or k].float().contiguous()
            return Stored(dense, Scheme("fp8_e4m3", size), codes.view(torch.uint8), scales)
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
        rows, cols = (int(b) for b in (block.lower().split("x") if isinstance(block, str) else block))
        return scale.repeat_interleave(rows, 0)[:n].repeat_interleave(cols, 1)[:, :k]
    scale = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    if scale.shape[1] > 1:
        scale = scale.repeat_interleave(-(-k // scale.shape[1]), 1)[:, :k]
    return scale.expand(n, k)


def _micro(codes: torch.Tensor, table: torch.Tensor, scale: torch.Tensor, kind: str) -> Stored:
    scales = powers_of_two(scale)
    return Stored(lambda: table[codes.long()] * spread(scales, 32, codes.shape[1]), Scheme(kind, 32), codes, scales)


class CompressedTensorsWriter(Writer):
    """Integers of 4 and 8 bits packed, or naive where activations are quantized; fp8, mxfp4 and mxfp8. Scales take the model's dtype."""

    name: ClassVar[str] = "compressed-tensors"

    def parts(self, codes: Codes, scheme: Scheme) -> dict[str, torch.Tensor]:
        form = self._form(scheme)
        n, k = codes.codes.shape
        if form == "mxfp4-pack-quantized":
            return {"weight_packed": pack_nibbles(codes.codes), "weight_scale": _exponents(codes.scales)}
        if form == "mxfp8-quantized":
            return {"weight": codes.codes.view(torch.float8_e4m3fn), "weight_scale": _exponents(codes.scales)}
        scales = codes.scales.to(self.dtype).contiguous()
        if form == "float-quantized":
            if scheme.share == "block":
                scales = scales[::128].contiguous()
            return {"weight": codes.codes.view(torch.float8_e4m3fn), "weight_scale": scales}
        offset = 1 << (scheme.bits - 1)
        zeros = zero_points(codes, scheme)
        if form == "int-quantized":
            parts = {"weight": (codes.codes.int() - offset).to(torch.int8), "weight_scale": scales}
            return parts | ({"weight_zero_point": (zeros - offset).to(torch.int8)} if scheme.asymmetric else {})
        parts = {
            "weight_packed": pack_words(codes.codes.int(), scheme.bits),
            "weight_scale": scales,
            "weight_shape": torch.tensor([n, k]),
        }
        return parts | ({"weight_zero_point": pack_words(zeros.T, scheme.bits).T.contiguous()} if scheme.asymmetric else {})

    def _form(self, scheme: Scheme) -> str:
        quantized = scheme.activations not in ("", "bf16", "f16", "f32")
        fixed = {"mxfp4": "mxfp4-pack-quantized", "mxfp8": "mxfp8-quantized", "fp8_e4m3": "float-quantized"}
        if scheme.kind in fixed and not (scheme.kind == "fp8_e4m3" and scheme.share == "tensor"):
            return fixed[scheme.kind]
        if scheme.kind in ("int4", "int8"):
            return "int-quantized" if quantized and scheme.bits == 8 else "pack-quantized"
        raise self.refuse(scheme, "it has int4, int8, fp8_e4m3 by channel or block, mxfp4 and mxfp8", "use one of those")

    def config(self, schemes: Mapping[str, Scheme], plain: list[str]) -> dict[str, Any]:
        by_scheme: dict[Scheme, list[str]] = {}
        for module, scheme in sorted(schemes.items()):
            by_scheme.setdefault(scheme, []).append(module)
        groups = {}
        for i, (scheme, modules) in enumerate(by_scheme.items()):
            groups[f"group_{i}"] = {
                "targets": ["Linear"] if len(by_scheme) == 1 else modules,
                "weights": _weight_arguments(scheme),
                "input_activations": _activation_arguments(scheme.activations),
                "output_activations": None,
                "format": self._form(scheme),
            }
        forms = {g["format"] for g in groups.values()}
        return {
            "quant_method": "compressed-tensors", "config_groups": groups, "ignore": plain, "kv_cache_scheme": None,
            "format": forms.pop() if len(forms) == 1 else "mixed-precision", "quantization_status": "compressed",
        }  # fmt: skip


def _exponents(scales: torch.Tensor) -> torch.Tensor:
    """Powers of two as E8M0 bytes; a group of zeros gets the smallest."""
    return (torch.log2(scales.clamp(min=2.0**-127)).round() + 127).clamp(0, 254).to(torch.uint8)


def _weight_arguments(scheme: Scheme) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "type": "int" if scheme.is_integer else "float",
        "symmetric": not scheme.asymmetric,
        "strategy": "block" if scheme.share == "block" else "group" if scheme.group else "channel",
        "group_size": scheme.group if scheme.group and scheme.share != "block" else None,
        "block_structure": [128, 128] if scheme.share == "block" else None,
        "dynamic": False,
        **({"scale_dtype": "torch.uint8"} if scheme.kind.startswith("mx") else {}),
    }


def _activation_arguments(activations: str) -> dict[str, Any] | None:
    key = next((key for key, name in ACTIVATIONS.items() if name == activations), None)
    if key is None:
        return None
    kind, bits, strategy, *size = key
    return {
        "num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": True,
        "group_size": size[0] if size else None, **({"scale_dtype": "torch.uint8"} if activations.startswith("mx") else {}),
    }  # fmt: skip
