"""A decoder's layers for one token in one launch.

A step of one token is bound by how fast weights come from memory, and a layer is nine launches that wait for each other: between them nothing is read. Where
layers are of a form that one program takes, which lives on all of the device and reads the next product's weights while it waits, a plan gets that
program beside the launches that it stands for. Which of the two a step takes follows from its size; the bits are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...runtime.plan import BLOCK, SPLIT, WHOLE_SPLITS

if TYPE_CHECKING:
    from ..triton.plan import Kernel, Launch, Lowered
    from ..triton.target import GpuTarget

WARPS = 16
LOG2E = 1.4426950408889634
LEAST, DEEPEST = 2, 8
"""Pieces, of a group of values of K or of 64, that a warp's copies are ahead."""
ENTRIES = 21
"""Addresses a layer, in the order of the template's names."""
NAMES = ("QKV", "O", "IN", "OUT")
SCALES = {"*fp32": "f32", "*fp16": "f16", "*bf16": "bf16"}
SHARE = 16
"""Query heads to a key at most: the rows of a matrix instruction."""


@dataclass(frozen=True)
class Layer:
    """One layer: its launches' places in the plan, what the program takes from each, and what must be equal in all layers."""

    places: tuple[int, ...]
    addresses: tuple[list[Any], ...]
    form: tuple[Any, ...]
    hidden: frozenset[int]
    """Buffers that its launches fill and the program does not."""


class _Other(Exception):
    """The launches are not such a layer."""


def add_program(lowered: Lowered, target: GpuTarget) -> None:
    """Give a plan the program for the longest run of layers that it takes, if there are any."""
    if target.generation != 90:  # copies in bulk, and the shared memory for them
        return
    launches = lowered.launches
    run: list[Layer] = []
    at = 0
    while at < len(launches):
        found: list[Layer] = []
        while (layer := _layer(launches, at)) is not None and (not found or _follows(found[-1], layer)):
            found.append(layer)
            at = layer.places[-1] + 1
        run = max(run, found, key=len)
        at += not found
    covered = {place for layer in run for place in layer.places}
    hidden = {buffer for layer in run for buffer in layer.hidden}
    elsewhere = {a[1] for i, x in enumerate(launches) if i not in covered for a in x.arguments if a[0] == "buffer"}
    constants = _constants(launches, run, target) if run and not hidden & elsewhere else None
    if constants is None:
        return
    template = launches[run[0].places[0]]
    kernel = replace(
        template.variants[0].kernel, module="cuda", function="decode_layers", signature=("*i64", "*fp32", "*i32", "*i32", "*i32", "*fp32", "*i64"),
        constants=tuple(sorted(constants.items())), warps=WARPS, source="cuda",
    )  # fmt: skip
    write, attend = (next(launches[p] for p in run[0].places if launches[p].kernel == name) for name in ("write_cache", "attend"))
    for place in covered:
        launch = launches[place]
        launch.stands = "parts"
        if launch.kernel == "norm":  # the program's own order of sums, for any number of rows
            launch.variants = [replace(v, kernel=replace(v.kernel, module="cuda", warps=WARPS, source="cuda")) for v in launch.variants]
    weights = sum(launches[place].weight_bytes for place in covered)
    lowered.addresses.append([list(entry) for layer in run for entry in layer.addresses])
    arguments = [["addresses", len(lowered.addresses) - 1], write.arguments[3], write.arguments[6], attend.arguments[8], ["input", "pos"], ["scratch", "part"], ["scratch", "meeting"]]  # fmt: skip
    variant = replace(template.variants[0], most=0, kernel=kernel, grid=[["1", constants["PROGRAMS"], 1]], tile=0)
    scope = f"{launches[run[0].places[0]].scope} … {launches[run[-1].places[-1]].scope}"
    whole = replace(
        template, kernel="decode_layers", scope=scope, arguments=arguments, variants=[variant], rows=["1", 1], pointers=[], when="", stands="whole",
        weight_bytes=weights, operations=sum(launches[place].operations for place in covered),
    )  # fmt: skip
    launches.insert(run[-1].places[-1] + 1, whole)


def _follows(former: Layer, layer: Layer) -> bool:
    return layer.form == former.form and layer.places[0] == former.places[-1] + 1 and layer.addresses[14] == former.addresses[18]


class _Reader:
    """Takes launches one after the other."""

    def __init__(self, launches: Sequence[Launch], at: int) -> None:
        self.launches, self.at = launches, at
        self.places: list[int] = []

    def take(self, name: str, function: str = "") -> tuple[Launch, dict[str, Any], tuple[str, ...]]:
        """The next launch, which must be of this kernel; with the constants and the signature of the variant that `function` names."""
        while self.at < len(self.launches) and self.launches[self.at].kernel in ("close", "merge", "rope_table"):
            if self.launches[self.at].kernel != "rope_table":
                self.places.append(self.at)
            self.at += 1
        if self.at == len(self.launches) or self.launches[self.at].kernel != name:
            raise _Other
        launch = self.launches[self.at]
        kernel = next((v.kernel for v in launch.variants if v.kernel.function == (function or name)), None)
        if kernel is None:
            raise _Other
        self.places.append(self.at)
        self.at += 1
        return launch, dict(kernel.constants), kernel.signature


def _layer(launches: Sequence[Launch], at: int) -> Layer | None:
    """The layer that begins there, if it is one."""
    try:
        return _read_layer(launches, at)
    except _Other:
        return None


def _read_layer(launches: Sequence[Launch], at: int) -> Layer:
    reader = _Reader(launches, at)
    norms, products = [], []

    def norm() -> Launch:
        launch, c, signature = reader.take("norm")
        plain = c["NORM"] == "rms" and c["WEIGHT"] and not (c["BIAS"] or c["ORDER"] or c["ROUND"]) and c["HEADS"] == 1 and c["LDX"] == c["KPAD"] == c["K"]
        _need(plain and signature[4] == "*bf16" and launch.arguments[0][2] == 0)
        norms.append((launch, c))
        return launch

    def product(x: list[Any], k: int, to: str, residual: list[Any] | None, gated: bool = False) -> Launch:
        launch, c, signature = reader.take("few_nibbles")
        _need(launch.arguments[0] == x and c["K"] == c["LDX"] == k and signature[7] == to and not c["HAS_ZERO"] and c["N"] % 16 == 0 and k % 2 == 0)
        _need(c["GATED"] == gated and c["ACT"] == ("silu" if gated else "") and not c["LIMIT"] and not c["ALPHA"])
        _need(c["WIDTH"] == c["LDY"] == (c["N"] // 2 if gated else c["N"]) and c["RESIDUAL"] == (residual is not None))
        _need(residual is None or (c["LDR"] == c["N"] and launch.arguments[6] == residual))
        _need(c["CHUNKS"] > 1 and WARPS % c["CHUNKS"] == 0)
        products.append((launch, c, signature))
        return launch

    before = norm()
    qkv = product(before.arguments[4], norms[0][1]["K"], "*fp32", None)
    write, w, write_types = reader.take("write_cache")
    row = products[0][1]["N"]
    _need(w["LDQ"] == w["LDK"] == w["LDV"] == row and w["LDQH"] == w["LDKH"] == w["DK"] and w["LDVH"] == w["DV"] and not (w["Q_NORM"] or w["K_NORM"]))
    _need(w["DK"] % 16 == 0 and w["DV"] % 8 == 0 and w["H"] % w["G"] == 0 and w["H"] // w["G"] <= SHARE and set(write_types[7:]) == {"*bf16"})
    _need(all(a[:2] == qkv.arguments[7][:2] for a in write.arguments[:3]))
    attend, a, attend_types = reader.take("attend")
    _need(not (a["WINDOW"] or a["CHUNK"] or a["SOFTCAP"] or a["SINKS"] or a["SLOPES"]) and a["DKP"] == a["DK"] and a["DVP"] == a["DV"] and a["BN"] == 64)
    _need(attend.arguments[0] == write.arguments[7] and attend.arguments[1:3] == write.arguments[8:10] and attend_types[10] == "*bf16")
    out = product(attend.arguments[10], w["H"] * w["DV"], "*fp32", before.arguments[0])
    after = norm()
    _need(after.arguments[0] == out.arguments[7] and norms[1][1]["K"] == products[1][1]["N"] == norms[0][1]["K"])
    inner = product(after.arguments[4], norms[1][1]["K"], "*bf16", None, gated=True)
    last = product(inner.arguments[7], products[2][1]["WIDTH"], "*fp32", out.arguments[7])
    _need(products[3][1]["N"] == norms[0][1]["K"] and len({s[2] for _, _, s in products}) == 1)
    while reader.at < len(launches) and launches[reader.at].kernel == "close":
        reader.places.append(reader.at)
        reader.at += 1
    four = (qkv, out, inner, last)
    addresses = [
        *(x.arguments[1] for x in four), *(x.arguments[2] for x in four), *(x.arguments[5] for x in four), before.arguments[1], after.arguments[1],
        before.arguments[0], qkv.arguments[7], out.arguments[7], inner.arguments[7], last.arguments[7], write.arguments[8], write.arguments[9],
    ]  # fmt: skip
    kernels = tuple(v.kernel.name for place in reader.places for v in launches[place].variants)
    offsets = tuple(x[2] - qkv.arguments[7][2] for x in write.arguments[:3])
    hidden = frozenset(x[1] for x in (before.arguments[4], after.arguments[4], write.arguments[7], attend.arguments[10]))
    return Layer(tuple(reader.places), tuple(addresses), (kernels, offsets, tuple(write.arguments[3])), hidden)


def _need(condition: bool) -> None:
    if not condition:
        raise _Other


def _constants(launches: Sequence[Launch], run: Sequence[Layer], target: GpuTarget) -> dict[str, Any] | None:
    """What the program is made for; None where it does not fit the chip."""
    reader = _Reader(launches, run[0].places[0])
    _, before, _ = reader.take("norm")
    held = [reader.take("few_nibbles")]
    _, write, _ = reader.take("write_cache")
    _, attend, _ = reader.take("attend")
    held.append(reader.take("few_nibbles"))
    _, after, _ = reader.take("norm")
    held += [reader.take("few_nibbles") for _ in range(2)]
    scales = SCALES[held[0][2][2]]
    products = tuple(
        {
            "name": name, "n": c["N"], "k": c["K"], "kw": c["KW"], "chunks": c["CHUNKS"], "parts": c["PARTS"], "group": c["GROUP"], "zero": c["ZERO"], "bias": c["BIAS"],
        }
        for name, (_, c, _) in zip(NAMES, held, strict=True)
    )  # fmt: skip
    per = max(64, products[0]["group"]) // 64
    piece = 2 * per
    if len({p["group"] for p in products}) > 1 or any(p["kw"] // 64 // p["chunks"] % per for p in products):
        return None
    share, dk, dv = write["H"] // write["G"], write["DK"], write["DV"]
    attention = SPLIT * (dv * 2 + 16) + share * (dk * 2 + 16) + dk * 2 + share * SPLIT * 4 + share * (SPLIT * 2 + 16) + share * 32
    stage = -(-max(2 * products[0]["kw"] + attention, *(2 * p["kw"] for p in products)) // 16) * 16
    fixed = -(-len(run) * ENTRIES * 8 // 16) * 16 + 2 * WARPS * 64 + 128 + stage + SPLIT * 4
    depth = min(DEEPEST, (target.shared_bytes - fixed) // (WARPS * piece * 512))
    if depth < LEAST:
        return None
    shared = fixed + depth * WARPS * piece * 512
    programs = min(target.processors, max(-(-p["n"] // 16 // (WARPS // p["chunks"])) for p in products))
    q, k, v = (offset // 4 for offset in run[0].form[1])
    return {
        "LAYERS": len(run), "ENTRIES": ENTRIES, "PROGRAMS": programs, "WARPS": WARPS, "DEPTH": depth, "PER": per, "PIECE_STEPS": piece, "STAGE": stage, "SHARED": shared,
        "PRODUCTS": products, "SCALES": scales, "EPS": (before["EPS"], after["EPS"]), "H": write["H"], "G": write["G"], "DK": dk, "DV": dv, "PAIRS": write["PAIRS"], "OFFSET": write["OFFSET"],
        "INTERLEAVED": write["INTERLEAVED"], "Q_FROM": q, "K_FROM": k, "V_FROM": v, "SPLIT": SPLIT, "SPLITS": WHOLE_SPLITS, "PAGE": BLOCK, "FACTOR": attend["SCALE"] * LOG2E, "TOGETHER": True,
    }  # fmt: skip
