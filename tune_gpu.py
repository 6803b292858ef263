"""`llmc tune --target cuda`: which tiles of a GPU's products are the fastest on this machine's device, by timing the compiled kernels.

A model's configuration is compiled for each scheme, without weights; or artifacts are taken as they are. Each product has a kernel for each range of rows, and each of
these has candidates of its own (codegen/triton/tiles.py). They are tried in rounds, one candidate of every kernel a round, since the
device times each kernel alone; a candidate is taken when it is faster by `WORTH` than what was best, timed beside it, and only if the
logits of every step keep their bits.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from .codegen.emit import Targets, emit
from .codegen.triton.target import TARGETS, GpuTarget, gpu_target
from .codegen.triton.tiles import candidates
from .codegen.tuning import Tuning
from .errors import EnvironmentLacks, LlmcError, UsageError
from .runtime.artifact import Artifact, open_artifact
from .runtime.executors.choose import FAMILIES, driver_module
from .runtime.executors.launch import LaunchExecutor
from .tune import Kernels, batch, write_table

SCHEMES = ("bf16", "int4:g128/bf16", "int8", "fp8")
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 2,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 4096, "dtype": "bfloat16",
}  # fmt: skip
"""Llama-3.1-8B's, with two layers."""
STEPS = ((1, 1), (2, 1), (8, 1), (16, 1), (32, 1), (64, 1), (1, 512), (1, 2048))
"""Sequences and tokens of each: in every range of rows at least one."""
WORTH = 0.02
ROUNDS = 5

Key = tuple[str, str]
"""A product, and up to how many rows its kernel takes, as a table names them."""
Choice = dict[Key, dict[str, int]]


class _Case:
    """A scheme's plan for a chip, and executors of it with other tiles."""

    def __init__(self, path: Path, gpu: GpuTarget) -> None:
        from .compiler.ir.text import parse_graph

        self._gpu, self._targets = gpu, Targets(gpus=(gpu,))
        self.artifact = open_artifact(path)
        self._graph = parse_graph(self.artifact.read("model.ir").decode())
        self.vocabulary = int(self.artifact.manifest["model"]["vocab"])

    def lowered(self, choice: Choice) -> tuple[Any, dict[str, Key]]:
        """What is built with those tiles; which kernels of it are whose."""
        kv_dtype = self.artifact.manifest["model"]["kv_dtype"]
        emitted = emit(self._graph, kv_dtype, self._targets, Tuning({self._gpu.name: as_table(choice)}))
        owners = {
            variant.kernel.name: (launch.product, str(variant.most))
            for launch in emitted.plans[0][1].launches
            if launch.product
            for variant in launch.variants
            if variant.kernel.source == "triton"
        }
        return emitted, owners

    def executor(self, choice: Choice) -> tuple[LaunchExecutor, dict[str, Key]]:
        """Raises LlmcError where a kernel does not compile, or takes more than the chip has."""
        emitted, owners = self.lowered(choice)
        files, _ = emitted.build(self._targets, "", lambda items, what: items)
        driver = driver_module(self._gpu.family).open_driver()
        try:
            made = LaunchExecutor(
                cast(Artifact, Kernels(self.artifact, files)), self._gpu.name, driver,
                max_tokens=2048, max_sequences=64, max_rows=64, context=2048, blocks=128, random_weights=1,
            )  # fmt: skip
        except BaseException:
            driver.close()
            raise
        return made, owners

    def candidates(self) -> dict[Key, list[dict[str, int]]]:
        """What is tried for each kernel of a product."""
        products = sorted({launch.product for launch in self.lowered({})[0].plans[0][1].launches} - {""})
        return {(p, most): fields for p in products for most, fields in candidates(self._gpu, p).items()}

    def bits(self, executor: LaunchExecutor) -> list[bytes]:
        """The logits of every step."""
        found = []
        for sequences, tokens in STEPS:
            executor.run(batch(sequences, tokens, self.vocabulary))
            found.append(executor.logits(sequences).tobytes())
        return found

    def seconds(self, executor: LaunchExecutor, owners: dict[str, Key]) -> dict[Key, float]:
        """Of each kernel, over the steps that it runs in."""
        found: dict[Key, float] = {}
        for sequences, tokens in STEPS:
            for row in executor.profile(batch(sequences, tokens, self.vocabulary), ROUNDS):
                if row["kernel"] in owners:
                    found[owners[row["kernel"]]] = found.get(owners[row["kernel"]], 0.0) + row["seconds"]
        return found


def as_table(choice: Choice) -> dict[str, dict[str, dict[str, int]]]:
    """Tiles as a tuning table has them."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    for (product, most), fields in sorted(choice.items()):
        table.setdefault(product, {})[most] = fields
    return table


def tune_gpu(
    out: str | Path,
    target: str,
    *,
    model: str = "",
    quants: Sequence[str] = SCHEMES,
    artifacts: Sequence[str | Path] = (),
    each: Callable[[Iterable[Any], str], Iterable[Any]] = lambda items, what: items,
) -> dict[str, Any]:
    """Search, and write the table, after each scheme what is known by then. target: cuda, rocm, or a chip's whole name; model: a folder or hub
    id whose configuration gives the shapes of products (default: Llama-3.1-8B's); artifacts: files with a plan for the chip, whose products are
    tuned instead, without torch. Raises EnvironmentLacks where no such device is here, UsageError for a name that is none or a file without
    that plan, ArtifactError for one that cannot be read.

    Returns what the file says: `levels`, for the chip the fields of tiles that differ from what a compile chooses; `provenance`, with the
    time of each candidate relative to what was best before it.
    """
    gpu = _device(target)
    for path in artifacts:
        _need_plan(path, gpu)
    found: Choice = {}
    tried: list[dict[str, Any]] = []
    table: dict[str, Any] = {}
    what = (
        {"artifacts": [Path(a).name for a in artifacts]} if artifacts else {"model": model or "llama 8B", "quants": list(quants)}
    )
    with tempfile.TemporaryDirectory(prefix="llmc-tune-") as folder:
        given = [(Path(a).name, Path(a)) for a in artifacts]
        for scheme, path in given or _compiled(Path(folder), gpu, model, quants):
            case = _Case(path, gpu)
            found |= _search(case, case.candidates(), scheme, tried, each)
            table = write_table(out, gpu.name, as_table(found), tried=tried, **what)
    return table


def _search(
    case: _Case, open_to: dict[Key, list[dict[str, int]]], scheme: str, tried: list[dict[str, Any]], each: Callable[[Iterable[Any], str], Iterable[Any]],
) -> Choice:  # fmt: skip
    """The best tiles of a scheme's products."""
    best: Choice = {}
    executor, owners = case.executor({})
    try:
        bits = case.bits(executor)
        for turn in each(range(max(map(len, open_to.values()), default=0)), f"candidates of {scheme}"):
            proposal = {key: {**best.get(key, {}), **fields[turn]} for key, fields in open_to.items() if turn < len(fields)}
            other, theirs, sound = _sound(case, best, proposal, bits)
            tried += [
                {"product": p, "rows": int(m), **proposal[p, m], "refused": True} for p, m in proposal if (p, m) not in sound
            ]
            if other is None:
                continue
            times = [(case.seconds(executor, owners), case.seconds(other, theirs)) for _ in range(2)]
            better = dict(best)
            for key, fields in sound.items():
                if not all(key in timed for pair in times for timed in pair):
                    continue  # no step has so many rows of it
                ratio = max(new[key] / old[key] for old, new in times)
                taken = ratio < 1 - WORTH
                tried.append({"product": key[0], "rows": int(key[1]), **fields, "time": round(ratio, 4), "taken": taken})
                if taken:
                    better[key] = fields
            other.close()
            if better != best:
                before, best = executor, better
                executor, owners = case.executor(best)
                before.close()
    finally:
        executor.close()
    return best


def _sound(
    case: _Case, best: Choice, proposal: Choice, bits: list[bytes], *, again: bool = True
) -> tuple[LaunchExecutor | None, dict[str, Key], Choice]:
    """An executor with the part of a proposal that compiles, runs, and keeps the bits; that part. Without `again`, all of it or nothing."""
    executor = None
    try:
        executor, owners = case.executor({**best, **proposal})
        if case.bits(executor) == bits:
            return executor, owners, proposal
    except LlmcError:
        pass
    if executor is not None:
        executor.close()
    if len(proposal) <= 1 or not again:
        return None, {}, {}
    keys = list(proposal)
    kept: Choice = {}
    for half in (keys[: len(keys) // 2], keys[len(keys) // 2 :]):
        made, _, sound = _sound(case, best, {key: proposal[key] for key in half}, bits)
        kept |= sound
        if made is not None:
            made.close()
    return _sound(case, best, kept, bits, again=False) if kept else (None, {}, {})


def _device(target: str) -> GpuTarget:
    """The chip that is here."""
    family, _, wanted = target.partition(":")
    if family not in FAMILIES:
        raise UsageError(
            f"llmc tune has no target {target!r}", "it is cpu (a level of it: --isa), cuda, rocm or a chip, such as cuda:sm_90"
        )
    asked = [gpu_target(target)] if wanted else [gpu for gpu in TARGETS.values() if gpu.family == family]
    module = driver_module(family)
    here = module.probe()
    fitting = [gpu for gpu in asked if module.runs(gpu.arch, here)]
    if not fitting:
        raise EnvironmentLacks(
            f"this machine has {family}:{here}, not {target}", "a table is searched on the chip that it is for"
        )
    return max(fitting, key=lambda gpu: gpu.name)


def _need_plan(path: str | Path, gpu: GpuTarget) -> None:
    with open_artifact(path) as artifact:
        if gpu.name not in [t["name"] for t in artifact.manifest["targets"]]:
            raise UsageError(
                f"{path} has no kernels for {gpu.name}", f"compile it with --target {gpu.name}, with --weights none if need be"
            )


def _compiled(folder: Path, gpu: GpuTarget, model: str, quants: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The model with each scheme, without weights."""
    from .pipeline import compile as compile_model

    if not model:
        source = folder / "model"
        source.mkdir()
        (source / "config.json").write_text(json.dumps(SHAPE))
    for i, quant in enumerate(quants):
        path = folder / f"{i}.llmc"
        compile_model(model or str(folder / "model"), path, quant=quant, target=(gpu.name,), weights="none")
        yield quant, path
