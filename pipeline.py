"""compile(): the whole compile, in the order in which it happens."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .compile_options import CompileOptions, resolve, schemes
from .errors import CheckpointError, GateFailed, LlmcError, UnsupportedError, UsageError, interrupts
from .external import quantized_by
from .quant.tools.tool import find_tool
from .version import VERSION

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from .codegen.emit import Emitted, Targets
    from .codegen.lowering import WeightSpec
    from .codegen.tuning import Tuning
    from .compiler.adapters import Adapter
    from .compiler.checkpoint import Checkpoint
    from .compiler.importer import Imported
    from .compiler.ir.graph import Graph
    from .quant.algorithms.registry import Algorithm
    from .quant.calibrate import Calibrated
    from .quant.formats.bound import BoundStored

T = TypeVar("T")

KERNELS = 100_000  # bytes of a level's kernels, and of their sources: a first guess


@dataclass
class CompileReport:
    """What a compile made. `seconds` and the rest of the report never enter the artifact."""

    artifact: str
    bytes: int
    sha256: str
    targets: list[str]
    quant: dict[str, str]
    conformance: dict[str, Any]
    fallbacks: list[dict[str, str]]
    seconds: dict[str, float]
    notes: list[str] = field(default_factory=list)
    curve: list[dict[str, Any]] | None = None

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "curve" or v is not None}


class Progress:
    """Stages and long loops of a compile, on standard error; silent when quiet. Owns the clock of each stage."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        if not self.quiet:
            print(f"{what} …", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            interrupts.check()
            yield
            interrupts.check()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def each(self, items: Iterable[T], what: str) -> Iterable[T]:
        from tqdm import tqdm

        return tqdm(items, desc=what, file=sys.stderr, disable=None if not self.quiet else True, leave=False)


def compile(
    source: str | Path | PreTrainedModel,
    out: str | Path,
    *,
    tokenizer: Any = None,
    force: bool = False,
    dump_ir: str | Path | None = None,
    quiet: bool = True,
    **options: Any,
) -> CompileReport:
    """Compile a checkpoint to one artifact.

    `source` is a folder, a .gguf file, a hub id, or a transformers model in memory, with its `tokenizer`; the keyword options are
    the fields of CompileOptions. Raises LlmcError subclasses; on any error nothing is left at `out`.
    """
    if not isinstance(source, str | Path):
        with saved_model(source, tokenizer) as folder:
            return compile(folder, out, force=force, dump_ir=dump_ir, quiet=quiet, **options)
    if tokenizer is not None:
        raise UsageError("a tokenizer goes with a model in memory; a checkpoint brings its own", "leave tokenizer out")
    source = str(source)
    settings = resolve(options)
    target = Path(out)
    if not target.parent.is_dir():
        raise UsageError(f"the folder {target.parent} does not exist", "create it first")
    if target.is_dir():
        raise UsageError(f"{target} is a folder", "give the name of a file")
    if settings.quant == "auto":
        return _compile_auto(source, target, settings, force, dump_ir, quiet)
    with ExitStack() as held:
        return _compile(source, target, settings, force, dump_ir, Progress(quiet), held)


def _compile(
    source: str,
    target: Path,
    settings: CompileOptions,
    force: bool,
    dump_ir: str | Path | None,
    progress: Progress,
    held: ExitStack,
) -> CompileReport:
    """compile() with its options checked; `held` ends when the artifact is written."""
    from .codegen.emit import emit, expand_targets
    from .quant.formats.registry import open_checkpoint

    targets = expand_targets(settings.target)
    tuning = _tuning(settings, targets)
    tools = _toolchains(targets, settings)
    with progress.stage("capture", f"Reading {source}"):
        checkpoint = open_checkpoint(source, trust_remote_code=settings.trust_remote_code, weights=settings.weights == "all")
        _refuse_overwriting(target, checkpoint, force)
        if settings.activations and settings.quant == "none" and not checkpoint.stored:
            raise UsageError("--activations has no effect: nothing is quantized", "give --quant as well")
        dtype = checkpoint.dtype if settings.dtype == "auto" else settings.dtype
        cache = checkpoint.cache if settings.kv_dtype == "auto" and settings.quant == "none" else None
        kv_dtype = settings.kv_dtype
        if kv_dtype == "auto":
            kv_dtype = cache.kind if cache is not None else _cache_dtype(dtype, targets)
        context = _context(checkpoint, settings.context)
    with progress.stage("capture", "Capturing the model's forward"):
        captured, imported = front_end(checkpoint, dtype, context, settings.trust_remote_code)
    params, adapters = adapted(settings, checkpoint, imported, parameters(checkpoint, captured, imported))
    original = imported, params
    opened, asked, tool = checkpoint, settings, find_tool(settings.algorithm)
    if tool is not None and settings.weights == "all":
        with progress.stage("quantize", f"Running {settings.algorithm}"):
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(dir=target.parent, prefix=".llmc-tool-")))
            tokens = _calibration(settings, checkpoint, imported.graph)
            checkpoint, settings = quantized_by(
                *tool, settings, checkpoint, captured, imported, params, tokens, folder, quiet=progress.quiet
            )
        params = parameters(checkpoint, captured, imported)
    else:
        imported, params = prepared(settings, imported, params)
    with progress.stage("passes", "Running the passes"):
        stored = stored_weights(checkpoint, captured, imported, settings)
        graph = run_passes(
            imported, settings, dump_ir, stored, cache.scales if cache is not None else {}, latent=not targets.gpus
        )
    with progress.stage("codegen", "Generating kernels"):
        emitted = emit(graph, kv_dtype, targets, tuning, settings.gpu_layers, settings.fast_nondeterministic)
    _enforce_strict(settings, emitted.fallbacks)
    with progress.stage("codegen", f"Compiling kernels for {', '.join(targets.names)}"):
        files, entries = emitted.build(targets, settings.cc, progress.each)
    notes: list[str] = list(stored.notes) if stored is not None else []
    if settings.fast_nondeterministic:
        from .runtime.config import FAST

        notes.append(FAST)
    if settings.gpu_layers and emitted.first is None:
        notes.append(f"--gpu-layers {settings.gpu_layers}: the model has no more layers, all of it runs on the GPU")
    if settings.weights == "all":
        unused = checkpoint.bind(captured.model).unused(getattr(captured.model, "_keys_to_ignore_on_load_unexpected", None) or ())
        if unused:
            notes.append(
                f"{len(unused)} tensors of the checkpoint belong to nothing in its configuration: {', '.join(unused[:3])}{' …' if len(unused) > 3 else ''}"
            )
    if stored is not None and stored.dense:
        reasons: dict[str, int] = {}
        for why in stored.dense.values():
            reasons[why] = reasons.get(why, 0) + 1
        notes += [f"{count} stored weights are used dequantized: {why}" for why, count in sorted(reasons.items())]
    with progress.stage("quantize", "Quantizing and packing weights"):
        from .codegen.reuse import packing_keys
        from .runtime.artifact import WeightsFile

        weights = WeightsFile(target.parent) if settings.weights == "all" else None
        if weights is not None:
            chosen = chosen_codes(settings, checkpoint, imported, params, progress)
            keys: list[str] = []
            if chosen is None and tool is None:
                origin = [settings.algorithm, checkpoint.sha256, *(f"{a.sha256} {a.scale}" for a in adapters)]
                keys = packing_keys(graph, emitted.weights, repr(origin))
            _pack(graph, emitted.weights, params, weights, progress, stored, chosen, target, keys)
            notes += chosen.warnings if chosen is not None else []
    files |= _model_files(graph, opened)
    manifest = _manifest(opened, captured, asked, emitted, entries, files, tools, dtype, kv_dtype, context, weights, graph)
    manifest["notes"] += notes
    if adapters:
        manifest["recipe"]["lora"] = [{"sha256": a.sha256, "scale": a.scale} for a in adapters]
    if tuning is not None:
        manifest["recipe"]["tuning"] = tuning.facts()
    try:
        with progress.stage("check", "Checking against the original"):
            manifest["conformance"], manifest["canary"] = _check(target, manifest, files, weights, opened, captured, *original)
        _enforce_gate(settings, manifest["conformance"])
        with progress.stage("package", f"Writing {target}"):
            from .runtime.artifact import write_artifact

            digest = write_artifact(target, manifest, files, weights)
    finally:
        if weights is not None:
            weights.close()
    return CompileReport(
        str(target),
        target.stat().st_size,
        digest,
        [t["name"] for t in manifest["targets"]],
        manifest["quant"],
        manifest["conformance"],
        emitted.fallbacks,
        {k: round(progress.seconds.get(k, 0.0), 3) for k in ("capture", "passes", "quantize", "codegen", "package", "check")},
        manifest["notes"],
    )


def _compile_auto(
    source: str, out: Path, settings: CompileOptions, force: bool, dump_ir: str | Path | None, quiet: bool
) -> CompileReport:
    """Choose a scheme for each module, then compile with them; again with fewer bytes while the file is larger than was asked for."""
    from .codegen.emit import expand_targets
    from .quant.formats.registry import open_checkpoint
    from .runtime.sizes import parse_size, show_size
    from .search import choose, draw

    progress = Progress(quiet)
    with progress.stage("capture", f"Reading {source}"):
        checkpoint = open_checkpoint(source, trust_remote_code=settings.trust_remote_code, weights=settings.weights == "all")
        _refuse_overwriting(out, checkpoint, force)
        dtype = checkpoint.dtype if settings.dtype == "auto" else settings.dtype
        captured, imported = front_end(checkpoint, dtype, _context(checkpoint, settings.context), settings.trust_remote_code)
    params, _ = adapted(settings, checkpoint, imported, parameters(checkpoint, captured, imported))
    tokens = _calibration(settings, checkpoint, imported.graph)
    with progress.stage("quantize", "Measuring what each weight's rounding costs"):
        probe = probe_ids(checkpoint, _context(checkpoint, settings.context), _vocabulary(imported.graph))
        rest = sum(map(len, checkpoint.tokenizer_files.values())) + KERNELS * (1 + len(expand_targets(settings.target).names))
        curve = choose(
            imported,
            params,
            tokens,
            probe,
            rest=rest,
            rules=schemes(settings)[1],
            target_size=settings.target_size,
            max_kl=settings.max_kl,
            each=lambda items: progress.each(list(items), "sensitivity"),
        )
    progress.say(curve.text())
    draft = out.with_name(f".{out.name}.draft")
    try:
        while True:
            chosen = replace(settings, quant="none", scheme=(*curve.rules, *settings.scheme), target_size="", plot="")
            report = compile(source, draft, force=True, dump_ir=dump_ir, quiet=quiet, **asdict(chosen))
            excess = report.bytes - parse_size(settings.target_size) if settings.target_size else 0
            if excess <= 0:
                break
            smaller = curve.smaller(excess)
            if smaller is None:
                raise GateFailed(
                    f"the smallest artifact has {show_size(report.bytes)}, more than {settings.target_size}",
                    "give a larger --target-size",
                )
            curve = smaller
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    if settings.plot:
        draw(curve, Path(settings.plot))
    report.artifact = str(out)
    report.curve = curve.to_json()
    return report


def _toolchains(targets: Targets, settings: CompileOptions) -> dict[str, str]:
    """What compiles the kernels, by the name that the manifest has for it."""
    from .codegen.triton.build import toolchain as triton_toolchain
    from .toolchain.c import toolchain

    found = {"compiler": toolchain(settings.cc)} if targets.levels or settings.gpu_layers else {}
    found |= {"triton": triton_toolchain()} if targets.gpus else {}
    return found | ({"hip": toolchain()} if any(gpu.family == "rocm" for gpu in targets.gpus) else {})


def _cache_dtype(dtype: str, targets: Targets) -> str:
    """What a model's cache is in where nothing else is asked for: 16-bit codes instead of bfloat16, which no GPU's kernels have (ADR 32)."""
    return "int16" if dtype == "bf16" and not targets.gpus else dtype


def _context(checkpoint: Checkpoint, wanted: int) -> int:
    text = checkpoint.config.get_text_config() if hasattr(checkpoint.config, "get_text_config") else checkpoint.config
    most = next(
        (
            int(v)
            for v in (getattr(text, n, None) for n in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"))
            if isinstance(v, int) and v > 0
        ),
        2048,
    )
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in [ropes, *(r for r in ropes.values() if isinstance(r, dict))]:  # of all layers, or by layer type
        if rope.get("rope_type") in ("dynamic", "yarn", "linear", "llama3", "longrope") and isinstance(
            rope.get("factor"), int | float
        ):
            longest = int(rope["factor"] * (rope.get("original_max_position_embeddings") or most))
            wanted, most = wanted or most, max(most, longest)
    if wanted > most:
        raise UsageError(f"--context {wanted} is more than the model's maximum of {most} positions", f"give at most {most}")
    return wanted or most


def _refuse_overwriting(target: Path, checkpoint: Checkpoint, force: bool) -> None:
    if not target.exists() or force:
        return
    from .runtime.artifact import open_artifact

    try:
        with open_artifact(target) as old:
            same = old.manifest["source"]["sha256"] == checkpoint.sha256
    except LlmcError:
        same = False
    if not same:
        raise UsageError(f"{target} exists already", "give another name, or --force to replace it")


# --- stages ------------------------------------------------------------------------------------------------------------


def front_end(checkpoint: Checkpoint, dtype: str, context: int, trust_remote_code: bool = False) -> tuple[Any, Imported]:
    """Capture and import: the model's forward as verified IR."""
    from .compiler.capture import capture
    from .compiler.importer import import_program
    from .compiler.ir.verify import verify

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # torch's own use of what it deprecates
        captured = capture(checkpoint.config, dtype, context, trust_remote_code=trust_remote_code)
        imported = import_program(captured)
    verify(imported.graph, "import")
    return captured, imported


def own_algorithm(settings: CompileOptions) -> Algorithm | None:
    """llmc's own algorithm; None for round to nearest, and for another tool's."""
    from .quant.algorithms.registry import parse_algorithm

    return parse_algorithm(settings.algorithm) if find_tool(settings.algorithm) is None else None


def prepared(
    settings: CompileOptions, imported: Imported, params: Callable[[str], torch.Tensor]
) -> tuple[Imported, Callable[[str], torch.Tensor]]:
    """The graph and its parameters as the algorithm turns them before anything is quantized."""
    from .passes.order import raising_passes
    from .passes.quantize import Quantize

    algorithm = own_algorithm(settings)
    if algorithm is None or not (algorithm.rotates or algorithm.transforms):
        return imported, params
    from .quant.algorithms.hadamard import transformed_inputs
    from .quant.algorithms.rotate import rotated

    graph = imported.graph
    for step in raising_passes(imported.buffers):
        graph = step.run(graph)
    if algorithm.rotates:
        imported, params = rotated(imported, graph, params)
        graph = imported.graph
    if algorithm.transforms:
        imported, params = transformed_inputs(imported, graph, params, Quantize(*schemes(settings)).plan(graph))
    return imported, params


def adapted(
    settings: CompileOptions, checkpoint: Checkpoint, imported: Imported, params: Callable[[str], torch.Tensor]
) -> tuple[Callable[[str], torch.Tensor], list[Adapter]]:
    """The parameters with the LoRA adapters of --lora in them, and those."""
    if not settings.lora:
        return params, []
    from .compiler.adapters import merged, open_adapter

    if checkpoint.stored and settings.quant == "none":
        raise UsageError(
            "--lora changes weights that the checkpoint holds quantized", "give --quant as well: bf16, or another scheme"
        )
    adapters = [open_adapter(text) for text in settings.lora]
    names = {p.name[1:] for p in imported.graph.params}
    return merged(params, adapters, names), adapters


@contextmanager
def saved_model(model: PreTrainedModel, tokenizer: Any) -> Iterator[str]:
    """A model in memory as a checkpoint's folder, for the time of the block. A class of one's own becomes known to transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers import PreTrainedModel as Known

    if not isinstance(model, Known):
        raise UsageError(
            f"a {type(model).__name__} is neither a path nor a transformers model", "give a PreTrainedModel, or a folder"
        )
    config = type(model.config)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    if config not in AutoModelForCausalLM._model_mapping:
        AutoModelForCausalLM.register(config, type(model))
    with tempfile.TemporaryDirectory(prefix="llmc-model-") as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        yield folder


def stored_weights(checkpoint: Checkpoint, captured: Any, imported: Imported, settings: CompileOptions) -> BoundStored | None:
    """The codes of a quantized checkpoint, where the compile is to keep any of them."""
    from .passes.quantize import unnamed

    if not checkpoint.stored or settings.quant != "none" or not unnamed(imported.graph, schemes(settings)[1]):
        return None
    from .quant.formats.bound import BoundStored

    return BoundStored(checkpoint, captured.model)


def run_passes(
    imported: Imported,
    settings: CompileOptions,
    dump_ir: str | Path | None = None,
    stored: BoundStored | None = None,
    cache: Mapping[str, tuple[float, float]] | None = None,
    *,
    latent: bool = True,
) -> Graph:
    """The CPU pass pipeline, verified after each pass; one file a pass in `dump_ir`."""
    from .compiler.ir.text import print_graph
    from .compiler.ir.verify import verify
    from .passes.order import cpu_passes
    from .passes.quantize import Quantize
    from .passes.raise_attention import refuse_unserved

    graph = imported.graph
    default, rules = schemes(settings)
    folder = Path(dump_ir) if dump_ir is not None else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "00-import.ir").write_text(print_graph(graph))
    kept = {p.name[1:]: stored.scheme(p.name[1:]) for p in imported.graph.params} if stored is not None else {}
    quantize = Quantize(default, rules, {n: s for n, s in kept.items() if s is not None}, settings.activations, cache or {})
    for number, step in enumerate(cpu_passes(imported.buffers, quantize, latent=latent), 1):
        graph = verify(step.run(graph), step.name)
        if folder is not None:
            (folder / f"{number:02d}-{step.name}.ir").write_text(print_graph(graph))
    refuse_unserved(graph)
    return graph


def parameters(checkpoint: Checkpoint, captured: Any, imported: Imported) -> Callable[[str], torch.Tensor]:
    """The model's parameters by name, one at a time; CheckpointError for one that holds anything but finite numbers."""
    bound = checkpoint.bind(captured.model)
    checked: set[str] = set()

    def parameter(name: str) -> torch.Tensor:
        if name in imported.buffers:
            return imported.buffers[name]
        value = bound(name)
        if name not in checked and value.is_floating_point():
            if not bool(value.isfinite().all()):
                raise CheckpointError(
                    f"{checkpoint.source}: {name} holds numbers that are not finite", "the checkpoint is damaged"
                )
            checked.add(name)
        return value

    return parameter


def _pack(
    graph: Graph,
    specs: list[WeightSpec],
    params: Callable[[str], torch.Tensor],
    weights: Any,
    progress: Progress,
    stored: BoundStored | None,
    chosen: Calibrated | None,
    target: Path,
    keys: list[str],
) -> None:
    """Pack each weight, or take it from the file that is replaced, where that has it under the same key."""
    from .codegen.lowering import unique_names
    from .codegen.reuse import Replaced
    from .codegen.weights import WeightPacker

    packer = WeightPacker(graph, chosen.params if chosen is not None else params, stored, chosen)
    with closing(Replaced(target if keys else None)) as old:
        for i, (name, spec) in enumerate(progress.each(list(zip(unique_names(specs), specs, strict=True)), "weights")):
            kept = old.tensor(keys[i]) if keys else None
            weights.add(name, packer.pack(spec) if kept is None else kept)
    packer.finish()
    weights.keys = keys


def chosen_codes(
    settings: CompileOptions,
    checkpoint: Checkpoint,
    imported: Imported,
    params: Callable[[str], torch.Tensor],
    progress: Progress,
) -> Calibrated | None:
    """The codes that an algorithm chooses from text, before any fusion; None for round to nearest."""
    from .quant.algorithms.registry import parse_algorithm
    from .quant.calibrate import calibrate

    default, rules = schemes(settings)
    algorithm = parse_algorithm(settings.algorithm)
    if algorithm is None or not algorithm.sees_text:
        return None
    from .passes.order import raising_passes
    from .passes.quantize import Quantize, calibrated_nodes

    graph = imported.graph
    for step in raising_passes(imported.buffers):
        graph = step.run(graph)
    plan = calibrated_nodes(graph, Quantize(default, rules).plan(graph))
    if not plan:
        raise UsageError(
            f"--algorithm {settings.algorithm} has nothing to quantize", "give --quant intN, or a --scheme with integers"
        )
    tokens = _calibration(settings, checkpoint, graph)
    journal = None
    if settings.work:
        from .quant.journal import Journal

        said = [settings.algorithm, checkpoint.sha256, hashlib.sha256(tokens.numpy().tobytes()).hexdigest(), VERSION]
        said += [f"{name} {scheme}" for name, scheme in plan.items()]
        journal = Journal(Path(settings.work), hashlib.sha256("\n".join(said).encode()).hexdigest())
    return calibrate(
        graph,
        params,
        tokens,
        plan,
        algorithm.rounding,
        algorithm.scaling,
        journal,
        lambda nodes, _: progress.each(nodes, "calibration"),
        Path(settings.work) if settings.offload else None,
    )


def _vocabulary(graph: Graph) -> int:
    size = graph.outputs[0].type.shape[-1]
    assert isinstance(size, int)
    return size


def _calibration(settings: CompileOptions, checkpoint: Checkpoint, graph: Graph) -> torch.Tensor:
    """Token ids [windows, length] of the calibration text."""
    from .quant.calibration_text import calibration_tokens

    raw = checkpoint.tokenizer_files.get("tokenizer.json")
    return calibration_tokens(settings.calibration, raw, _context(checkpoint, settings.context), _vocabulary(graph))


def _model_files(graph: Graph, checkpoint: Checkpoint) -> dict[str, bytes]:
    from .compiler.ir.text import print_graph

    files = {"model.ir": print_graph(graph).encode()}
    files.update({f"tokenizer/{name}": data for name, data in checkpoint.tokenizer_files.items()})
    return files


def _manifest(
    checkpoint: Checkpoint,
    captured: Any,
    settings: CompileOptions,
    emitted: Emitted,
    entries: list[dict[str, Any]],
    files: dict[str, bytes],
    tools: dict[str, str],
    dtype: str,
    kv_dtype: str,
    context: int,
    weights: Any,
    graph: Graph,
) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    from .compiler.report import quantization_report

    config = checkpoint.config
    parameters = sum(p.numel() for p in captured.model.parameters())
    recipe = {
        k: v
        for k, v in asdict(settings).items()
        if k not in ("max_kl", "strict", "cc", "calibration", "target_size", "plot", "work", "offload", "tool_python", "tuning")
    }
    algorithm = own_algorithm(settings)
    if settings.algorithm != "rtn" and (algorithm is None or algorithm.sees_text):
        from .quant.calibration_text import calibration_text

        text = calibration_text(settings.calibration)
        recipe["calibration"] = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    text = config.get_text_config() if hasattr(config, "get_text_config") else config

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return ""

    from . import __name__ as package
    from .runtime.artifact import SCHEMA

    assert package
    (logits,) = graph.outputs
    vocabulary = logits.type.shape[-1]
    kernel_sources = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if "/source/" in name}
    return {
        "schema": SCHEMA,
        "llmc": VERSION,
        "source": {"sha256": checkpoint.sha256, "files": sorted(p.name for p in checkpoint.files)},
        "toolchain": {
            **tools,
            "torch": installed("torch").partition("+")[0],
            "transformers": installed("transformers"),
            "sources_sha256": hashlib.sha256(json.dumps(kernel_sources, sort_keys=True).encode()).hexdigest(),
        },
        "model": {
            "architecture": (getattr(config, "architectures", None) or [type(captured.model).__name__])[0],
            "type": config.model_type,
            "parameters": parameters,
            "context": context,
            "vocab": vocabulary,
            "dtype": dtype,
            "kv_dtype": kv_dtype,
            "bos_token_id": getattr(text, "bos_token_id", None),
            "eos_token_id": getattr(text, "eos_token_id", None),
        },
        "recipe": json.loads(json.dumps(recipe)),
        "targets": entries,
        "quant": quantization_report(graph),
        "weights": [list(item) for item in weights.listed] if weights is not None else [],
        "packing": weights.keys if weights is not None else [],
        "memory_plan": emitted.memory_plan(),
        "fallbacks": emitted.fallbacks,
        "notes": list(captured.notes)
        + (
            []
            if checkpoint.tokenizer_files.get("tokenizer.json")
            else ["the checkpoint has no tokenizer: the artifact takes token ids only"]
        ),
        "conformance": {},
        "canary": {},
    }


def _tuning(settings: CompileOptions, targets: Targets) -> Tuning | None:
    """The tuning table that was given, if one was."""
    from .codegen.emit import CPU_LEVELS
    from .codegen.tuning import read_tuning

    if not settings.tuning:
        return None
    tuning = read_tuning(settings.tuning)
    used = {*targets.levels, *(gpu.name for gpu in targets.gpus), *(CPU_LEVELS if settings.gpu_layers else ())}
    if not used & set(tuning.levels):
        held = ", ".join(tuning.levels) or "nothing"
        raise UsageError(f"--tuning has no effect: the table is for {held}", f"the targets are {', '.join(targets.names)}")
    return tuning


def _enforce_strict(settings: CompileOptions, fallbacks: list[dict[str, str]]) -> None:
    if settings.strict and fallbacks:
        first = fallbacks[0]
        raise UnsupportedError(
            f"--strict: {len(fallbacks)} nodes run on generic kernels, the first is {first['op']} in {first['module'] or 'the model'}: {first['reason']}",
            "compile without --strict to accept them",
        )


def _enforce_gate(settings: CompileOptions, conformance: dict[str, Any]) -> None:
    if settings.max_kl is None:
        return
    if "kl_mean" not in conformance:
        raise GateFailed(
            f"--max-kl cannot be checked here: {conformance.get('skipped')}",
            "run the gate on a machine that the target runs on, with llmc eval",
        )
    if not conformance["kl_mean"] <= settings.max_kl:
        raise GateFailed(
            f"the mean KL divergence is {conformance['kl_mean']}, more than --max-kl {settings.max_kl}",
            "use more bits, smaller groups, or another algorithm",
        )


def _check(
    target: Path,
    manifest: dict[str, Any],
    files: dict[str, bytes],
    weights: Any,
    checkpoint: Checkpoint,
    captured: Any,
    imported: Imported,
    params: Callable[[str], torch.Tensor],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the artifact beside its place, run it, and compare its logits with the reference's on probe text."""
    if weights is None:
        return {"skipped": "compiled without weights"}, {}
    from .runtime.cpu_info import available_levels

    held = [t["isa"] for t in manifest["targets"] if t["name"].startswith("cpu")] or [t["name"] for t in manifest["targets"]]
    if not set(held) & set(available_levels()):
        reason = f"none of {', '.join(held)} runs on this machine; check it there with llmc eval --reference"
        return {"skipped": reason}, {}
    import torch

    from .compiler.ir.reference import Context, run
    from .conformance import compare
    from .runtime.api import load
    from .runtime.artifact import write_artifact

    ids = probe_ids(checkpoint, int(manifest["model"]["context"]), int(manifest["model"]["vocab"]))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".llmc-check-") as folder:
        draft = Path(folder) / "draft.llmc"
        write_artifact(draft, manifest, files, weights)
        with load(
            draft, kv_cache="256MiB" if manifest["memory_plan"]["cache_bytes_per_block"] < (1 << 20) else None, max_batch=2
        ) as model:
            logits = model.logits([ids])[0]
            canary: dict[str, list[Any]] = {"sequences": [ids[:n] for n in (5, 33)]}
            canary["sha256"] = [model.logits_hash(s) for s in canary["sequences"]]
        del model  # and with it the mapping of the draft, which is as large as its weights
    context = Context.single(len(ids), wide=torch.float32)
    with torch.no_grad():
        (reference,) = run(imported.graph, params, torch.tensor(ids), context)
    return compare(reference[0].numpy(), logits), canary


def probe_ids(checkpoint: Checkpoint, context: int, vocabulary: int) -> list[int]:
    """Token ids of the probe text, or arithmetic ones without a tokenizer."""
    from .conformance import PROBE, PROBE_TOKENS

    count = min(PROBE_TOKENS, context)
    raw = checkpoint.tokenizer_files.get("tokenizer.json")
    if raw is not None:
        from tokenizers import Tokenizer

        ids = [i for i in Tokenizer.from_str(raw.decode()).encode(PROBE, add_special_tokens=False).ids if i < vocabulary][:count]
        if len(ids) >= 16:
            return ids
    return [(7919 * i + 11) % vocabulary for i in range(min(count, 128))]


def reference_logits(source: str, context: int = 0, *, trust_remote_code: bool = False) -> Callable[[list[int]], Any]:
    """A function from token ids [T] to the original's logits [T, V] float32, by the reference executor in float32."""
    import torch

    from .compiler.ir.reference import TORCH_DTYPE as dtypes
    from .compiler.ir.reference import Context, run
    from .quant.formats.registry import open_checkpoint

    checkpoint = open_checkpoint(source, trust_remote_code=trust_remote_code)
    captured, imported = front_end(
        checkpoint, checkpoint.dtype, _context(checkpoint, min(context, _context(checkpoint, 0))), trust_remote_code
    )
    params = parameters(checkpoint, captured, imported)
    types = {p.name[1:]: dtypes[p.type.dtype] for p in imported.graph.params}
    kept: dict[str, torch.Tensor] = {}

    def parameter(name: str) -> torch.Tensor:
        if name not in kept:
            value = params(name)
            kept[name] = value.to(types[name]) if value.is_floating_point() else value
        return kept[name]

    def logits(ids: list[int]) -> Any:
        with torch.no_grad():
            (out,) = run(imported.graph, parameter, torch.tensor(ids), Context.single(len(ids), wide=torch.float32))
        return out[0].numpy()

    return logits
