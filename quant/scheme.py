"""Schemes: what numbers a weight, its scales and its activations are. The text form is that of docs/cli.md."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..errors import UnsupportedError, UsageError, nearest

FLOATS = ("f32", "f16", "bf16")
INTEGERS = ("int2", "int3", "int4", "int5", "int6", "int8")
CODED = ("fp8_e4m3", "fp8_e5m2", "mxfp4", "mxfp8", "nvfp4", "nf4", "iq4")
WEIGHTS = (*FLOATS, *INTEGERS, *CODED)
BITS = {"f32": 32, "f16": 16, "bf16": 16, "fp8_e4m3": 8, "fp8_e5m2": 8, "mxfp4": 4, "mxfp8": 8, "nvfp4": 4, "nf4": 4, "iq4": 4}
FIXED_GROUP = {"mxfp4": 32, "mxfp8": 32, "nvfp4": 16}
ALIASES = {"int4": "int4:g64/bf16", "int8": "int8:channel/int8", "fp8": "fp8_e4m3:channel/fp8"}
ACTIVATIONS = (
    "f32",
    "f16",
    "bf16",
    "int8",
    "int8-asym",
    "int8-static",
    "fp8",
    "fp8-g128",
    "fp8-static",
    "mxfp8",
    "mxfp4",
    "nvfp4",
)
STATIC = ("int8-static", "fp8-static")  # by one step for the tensor, which the checkpoint fixes
GROUPS = (16, 32, 64, 128)
SCALES = ("f16", "f32", "bf16", "int8")  # the order is that of the kernels' numbers
GRANULARITIES = ("g16", "g32", "g64", "g128", "channel", "tensor", "block128", "asym")


@dataclass(frozen=True, slots=True)
class Scheme:
    """A weight's storage.

    `kind` says what a code is; `group` values of K share a scale (0: a whole channel; unused by floats); `share` is how many
    outputs share it ("tensor": all, "block": 128, else one); `asymmetric` adds a zero point; `activations` is what the other
    operand of the product is rounded to. `scales` is how scales are stored: f16, f32, bf16, or int8, which count a power of two that
    each output has (second-level quantization); "" means f16 for groups and f32 for channels. The rest is of weights that
    another tool quantized, kept as it stored them: `stored` says so, `offset` that zero points are no integers, and `order` names a permutation of
    the inputs under which groups lie together.
    """

    kind: str
    group: int = 0
    asymmetric: bool = False
    activations: str = ""
    share: str = ""
    scales: str = ""
    stored: bool = False
    offset: bool = False
    order: str = ""

    def __str__(self) -> str:
        text = self.kind
        if self.is_coded:
            if self.share:
                text += ":block128" if self.share == "block" else ":tensor"
            elif self.kind not in FIXED_GROUP:
                text += f":g{self.group}" if self.group else ":channel"
            text += ":asym" if self.asymmetric else ""
        text += f":scale-{self.scales}" if self.scales else ""
        for name in ("stored", "offset"):
            text += f":{name}" if getattr(self, name) else ""
        text += f":order-{self.order}" if self.order else ""
        return text + (f"/{self.activations}" if self.activations else "")

    @property
    def is_integer(self) -> bool:
        return self.kind.startswith("int")

    @property
    def is_coded(self) -> bool:
        """Whether weights are codes with scales, rather than floating-point numbers as they are."""
        return self.kind not in FLOATS

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return int(self.kind[3:]) if self.is_integer else BITS[self.kind]

    @property
    def scale_kind(self) -> str:
        """How scales are stored, one of SCALES."""
        return self.scales or ("f16" if self.group else "f32")

    @property
    def scale_bytes(self) -> int:
        """Bytes of one scale."""
        return {"f32": 4, "int8": 1}.get(self.scale_kind, 2)

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
        if kind == "fp8":
            raise UsageError(
                f"{text!r}: fp8 alone is short for {ALIASES['fp8']}", f"write fp8_e4m3{weight[3:]} or fp8_e5m2{weight[3:]}"
            )
        raise UsageError(f"unknown scheme {kind!r} in {text!r}", nearest(kind, tuple(dict.fromkeys((*WEIGHTS, *ALIASES)))))
    if slash and activations not in ACTIVATIONS:
        raise UsageError(f"unknown activations {activations!r} in {text!r}", nearest(activations, ACTIVATIONS))
    facts = {name: name in rest for name in ("stored", "offset")}
    order = next((word[6:] for word in rest if word.startswith("order-")), "")
    scales = [word[6:] for word in rest if word.startswith("scale-")]
    rest = [word for word in rest if word not in facts and not word.startswith(("order-", "scale-"))]
    for word in scales:
        if word not in SCALES:
            raise UsageError(f"unknown scales {word!r} in {text!r}", nearest(word, SCALES))
    granularities = [word for word in rest if word != "asym"]
    if len(granularities) > 1 or rest.count("asym") > 1:
        raise UsageError(
            f"{text!r} says its granularity twice", "write one of :gN, :channel, :tensor and :block128, and :asym once"
        )
    asymmetric = "asym" in rest
    word = granularities[0] if granularities else ""
    if "" in rest:
        raise UsageError(f"{text!r} has an empty granularity", nearest("", GRANULARITIES))
    grouped = re.fullmatch(r"g(\d+)", word)
    if word and not grouped and word not in GRANULARITIES:
        raise UsageError(f"unknown granularity {word!r} in {text!r}", nearest(word, GRANULARITIES))
    if kind in FLOATS:
        if rest or scales:
            raise UsageError(f"{text}: a floating-point scheme takes no granularity")
        return Scheme(kind, activations=activations)
    if asymmetric and not kind.startswith("int"):
        raise UsageError(f"{text}: {kind} has no zero points", "leave :asym out")
    if kind in FIXED_GROUP and word not in ("", f"g{FIXED_GROUP[kind]}"):
        raise UsageError(f"{text}: {kind} has groups of {FIXED_GROUP[kind]}", "leave the granularity out")
    group = int(grouped[1]) if grouped else FIXED_GROUP.get(kind, 0)
    if not word and kind not in FIXED_GROUP:
        group = 0 if kind == "int8" or kind.startswith("fp8") else 64
    share = {"tensor": "tensor", "block128": "block"}.get(word, "")
    group = 128 if share == "block" else group
    if (group not in (0, *GROUPS) or word == "g0") and not facts["stored"]:
        raise UnsupportedError(f"{text}: groups of {group} are not supported", "use g16, g32, g64, g128 or channel")
    kept = "".join(scales[:1])
    if kept == ("f16" if group else "f32"):
        kept = ""
    fixed = bool(share or kind in FIXED_GROUP) and not facts["stored"]
    if len(scales) > 1 or (scales and fixed) or (kept and not group):
        raise UsageError(f"{text}: scales are chosen once, for groups of g16, g32, g64 or g128", "leave :scale-… out")
    if not activations:
        activations = {"int8": "int8", "fp8_e4m3": "fp8", "mxfp8": "mxfp8"}.get(kind, "bf16")
    return Scheme(kind, group, asymmetric, activations, share, kept, **facts, order=order)
