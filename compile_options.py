"""The options of a compile: the same words on the command line, in recipes and in Python; checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, UsageError, nearest

if TYPE_CHECKING:
    from .quant.scheme import Scheme

DTYPES = ("auto", "f32", "f16", "bf16")
KV_DTYPES = (*DTYPES, "int16", "int8", "fp8")


@dataclass(frozen=True)
class CompileOptions:
    """Everything that decides an artifact's bytes, beside the source: the same words as the command line and the recipe."""

    quant: str = "none"
    dtype: str = "auto"
    kv_dtype: str = "auto"
    scheme: tuple[str, ...] = ()
    activations: str = ""
    group_size: int = 0
    asymmetric: bool = False
    algorithm: str = "rtn"
    calibration: str = ""
    target: tuple[str, ...] = ("cpu",)
    gpu_layers: int = 0
    fast_nondeterministic: bool = False
    context: int = 0
    weights: str = "all"
    trust_remote_code: bool = False
    cc: str = ""
    max_kl: float | None = None
    strict: bool = False
    target_size: str = ""
    plot: str = ""
    work: str = ""
    offload: bool = False
    tool_python: str = ""
    lora: tuple[str, ...] = ()
    tuning: str = ""


def resolve(options: dict[str, Any]) -> CompileOptions:
    """Check every option's name and value; raises UsageError naming the nearest valid one."""
    known = CompileOptions.__dataclass_fields__
    for key in options:
        if key not in known:
            raise UsageError(f"unknown option {key!r}", nearest(key, list(known)))
    for key in ("scheme", "target", "lora"):
        if isinstance(options.get(key), str):
            options = {**options, key: (options[key],)}
        elif key in options:
            options = {**options, key: tuple(options[key]) or known[key].default}
    for key, value in options.items():
        kind = type(known[key].default)
        fits = (
            value is None if known[key].default is None else isinstance(value, kind) and (kind is bool) == isinstance(value, bool)
        )
        if key != "max_kl" and not fits:
            raise UsageError(
                f"{key} cannot be {value!r}", f"it is {'a list' if kind is tuple else f'of the type {kind.__name__}'}"
            )
    settings = CompileOptions(**options)
    for name, value, valid in (
        ("dtype", settings.dtype, DTYPES),
        ("kv_dtype", settings.kv_dtype, KV_DTYPES),
        ("weights", settings.weights, ("all", "none")),
    ):
        if value not in valid:
            raise UsageError(f"{name.replace('_', '-')} cannot be {value!r}", nearest(str(value), valid))
    from .quant.algorithms.registry import parse_algorithm
    from .quant.tools.tool import find_tool

    if find_tool(settings.algorithm) is None:
        parse_algorithm(settings.algorithm)
        if settings.tool_python:
            raise UsageError("--tool-python has no effect: the algorithm is llmc's own", "give --algorithm TOOL:METHOD")
    elif settings.work or settings.offload:
        raise UsageError(f"--work has no effect on {settings.algorithm}", "leave it out")
    if settings.offload and not settings.work:
        raise UsageError("--offload needs a folder for its files", "give --work DIR")
    if settings.max_kl is not None and not (isinstance(settings.max_kl, int | float) and 0 <= settings.max_kl < float("inf")):
        raise UsageError(f"max-kl cannot be {settings.max_kl}", "give a divergence in nats, such as 0.05")
    if settings.calibration and not Path(settings.calibration).is_file():
        raise InputError(f"the calibration text {settings.calibration} does not exist")
    if settings.context < 0:
        raise UsageError(f"a context of {settings.context} positions is impossible", "give a positive --context")
    if settings.gpu_layers < 0:
        raise UsageError(f"{settings.gpu_layers} layers on the GPU are impossible", "give --gpu-layers at least 1")
    if settings.gpu_layers and not any(":" in t and not t.startswith("cpu") for t in settings.target):
        raise UsageError("--gpu-layers has no effect: no target is a GPU", "give --target cuda:sm_90, say, as well")
    if settings.fast_nondeterministic and not any(t.startswith("rocm:") for t in settings.target):
        raise UsageError(
            "--fast-nondeterministic has no effect: only rocm targets have kernels whose bits depend on the batch", "leave it out"
        )
    schemes(settings)
    _check_auto(settings)
    return settings


def _check_auto(settings: CompileOptions) -> None:
    from .runtime.sizes import parse_size

    if settings.quant == "auto":
        if settings.max_kl is None and not settings.target_size:
            raise UsageError("--quant auto needs something to meet", "give --max-kl X or --target-size SIZE")
        if settings.weights == "none":
            raise UsageError("--quant auto needs the weights", "leave --weights none out")
        if ":" in settings.algorithm:
            raise UsageError(f"--quant auto cannot be met by {settings.algorithm}", "use an algorithm of llmc's own")
        if settings.target_size:
            parse_size(settings.target_size)
        if settings.plot and not Path(settings.plot).resolve().parent.is_dir():
            raise UsageError(f"the folder of {settings.plot} does not exist", "create it first")
        for name, value in (
            ("activations", settings.activations),
            ("group-size", settings.group_size),
            ("asymmetric", settings.asymmetric),
        ):
            if value:
                raise UsageError(f"--{name} changes a scheme, and --quant auto chooses them", "leave it out")
    elif settings.target_size or settings.plot:
        raise UsageError("--target-size and --plot belong to --quant auto", "give --quant auto, or leave them out")


def schemes(settings: CompileOptions) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The default scheme ("" leaves weights as they are) and the rules, from --quant, its modifiers and --scheme."""
    from .quant.scheme import parse_scheme

    def modified(text: str) -> str:
        scheme = parse_scheme(text)
        if scheme.is_coded:
            if settings.group_size:
                scheme = replace(scheme, group=settings.group_size)
            if settings.asymmetric:
                scheme = replace(scheme, asymmetric=True)
        if settings.activations:
            scheme = replace(scheme, activations=settings.activations)
        return str(parse_scheme(str(scheme)))

    if settings.quant != "auto":
        _refuse_idle_modifiers(settings, parse_scheme("bf16" if settings.quant == "none" else settings.quant))
    default = "" if settings.quant in ("none", "auto") else modified(settings.quant)
    rules = []
    for rule in settings.scheme:
        glob, separator, text = rule.partition("=")
        if not separator or not glob:
            raise UsageError(f"--scheme {rule!r} is not GLOB=SCHEME", "write it as 'model.layers.*.mlp.down_proj=int8'")
        rules.append((glob, str(parse_scheme(text))))
    return default, tuple(rules)


def _refuse_idle_modifiers(settings: CompileOptions, scheme: Scheme) -> None:
    """Raise UsageError for --group-size and --asymmetric where the scheme has neither groups nor zero points."""
    from .quant.scheme import FIXED_GROUP

    if settings.group_size and (not scheme.is_coded or scheme.kind in FIXED_GROUP or scheme.share):
        raise UsageError(f"--group-size has no effect on {settings.quant}", "leave it out")
    if settings.asymmetric and not scheme.is_integer:
        raise UsageError(f"--asymmetric has no effect on {settings.quant}: it has no zero points", "leave it out")
