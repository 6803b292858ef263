"""Schemes: what numbers a weight, its scales and its activations are. The text form is that of docs/cli.md."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..errors import UnsupportedError, UsageError, nearest

FLOATS = ("f32", "f16", "bf16")
WEIGHTS = (*FLOATS, "int2", "int3", "int4", "int5", "int6", "int8", "fp8_e4m3", "fp8_e5m2", "mxfp4", "mxfp8", "nvfp4", "nf4")
ALIASES = {"int4": "int4:g64/bf16", "int8": "int8:channel/int8", "fp8": "fp8_e4m3:channel/fp8"}
ACTIVATIONS = ("f32", "f16", "bf16", "int8", "fp8")


@dataclass(frozen=True, slots=True)
class Scheme:
    """A weight's storage: `kind`; `group` values of K share a scale (0: a whole channel; unused by floats); `asymmetric`
    adds a zero point; `activations` is what the other operand of the product is rounded to."""

    kind: str
    group: int = 0
    asymmetric: bool = False
    activations: str = ""

    def __str__(self) -> str:
        text = self.kind
        if self.is_integer:
            text += f":g{self.group}" if self.group else ":channel"
            text += ":asym" if self.asymmetric else ""
        return text + (f"/{self.activations}" if self.activations else "")

    @property
    def is_integer(self) -> bool:
        return self.kind.startswith("int")

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return int(self.kind[3:]) if self.is_integer else {"f32": 32, "f16": 16, "bf16": 16}[self.kind]

    def with_activations(self, activations: str) -> Scheme:
        return replace(self, activations=activations)


def integer_scheme(bits: int, group: int, asymmetric: bool) -> Scheme:
    """intN with `group` inputs a scale (0: a channel)."""
    return Scheme(f"int{bits}", group, asymmetric)


def parse_scheme(text: str) -> Scheme:
    """Parse `int4:g64:asym/bf16`; raises UsageError naming the nearest valid word, UnsupportedError for one not built yet."""
    text = ALIASES.get(text.strip(), text.strip())
    weight, slash, activations = text.partition("/")
    kind, *rest = weight.split(":")
    if kind not in WEIGHTS:
        raise UsageError(f"unknown scheme {kind!r} in {text!r}", nearest(kind, (*WEIGHTS, *ALIASES)))
    if slash and activations not in ACTIVATIONS:
        raise UsageError(f"unknown activations {activations!r} in {text!r}", nearest(activations, ACTIVATIONS))
    group, asymmetric = 0, False
    granularities = [word for word in rest if word != "asym"]
    if len(granularities) > 1 or rest.count("asym") > 1:
        raise UsageError(f"{text!r} says its granularity twice", "write one of :gN, :channel, and :asym once")
    for word in rest:
        match = re.fullmatch(r"g(\d+)", word)
        if match:
            group = int(match[1])
            if group == 0:
                raise UnsupportedError(f"{text!r}: groups of 0 are not supported", "use g32, g64, g128 or channel")
        elif word == "asym":
            asymmetric = True
        elif word not in ("channel", "tensor", "block128"):
            raise UsageError(
                f"unknown granularity {word!r} in {text!r}",
                nearest(word, ("g32", "g64", "g128", "channel", "tensor", "block128", "asym")),
            )
        elif word != "channel":
            raise UnsupportedError(f"{text}: one scale a {word} is not supported yet", "use :channel or :gN")
    if kind in FLOATS:
        if rest:
            raise UsageError(f"{text}: a floating-point scheme takes no granularity")
        return Scheme(kind, activations=activations)
    if kind not in ("int4", "int8"):
        raise UnsupportedError(f"scheme {kind} is not supported yet", "int4, int8, bf16, f16 and f32 are")
    if not rest or (not group and "channel" not in rest):
        group = 64 if kind == "int4" and "channel" not in rest else group
    if group and group not in (32, 64, 128):
        raise UnsupportedError(f"{text}: groups of {group} are not supported", "use g32, g64 or g128")
    activations = activations or ("bf16" if kind == "int4" else "int8")
    if activations == "fp8":
        raise UnsupportedError(f"{text}: fp8 activations are not supported yet")
    if kind == "int8" and asymmetric and activations == "int8":
        raise UnsupportedError(f"{text}: asymmetric 8-bit weights take bf16 activations", "write /bf16")
    return Scheme(kind, group, asymmetric, activations)
