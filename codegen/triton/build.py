"""Building a Plan: its kernels compiled for one chip, and the plan as the launch executor reads it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...errors import EnvironmentLacks, LlmcError, UnsupportedError
from ...runtime.plan import PLAN_VERSION
from ...toolchain.kernel_cache import cached, keep
from ..hip import build as hip
from ..lowering import WeightSpec, place_caches
from ..weights import packed_bytes
from . import generic
from .elf import resources
from .plan import Kernel, Lowered
from .target import GpuTarget

FOLDER = Path(__file__).parent / "kernels"


@dataclass(frozen=True)
class Built:
    """A target's members by file name, and what `llmc inspect` lists of its kernels."""

    files: dict[str, bytes]
    kernels: tuple[dict[str, Any], ...]


def toolchain() -> str:
    """What compiles the kernels, for the manifest."""
    try:
        return f"triton {version('triton')}"
    except PackageNotFoundError as error:
        raise EnvironmentLacks("GPU targets need the package triton", "install the `compile` extra") from error


def sources(plans: Sequence[Lowered]) -> dict[str, str]:
    """The modules that the kernels come from, by file name."""
    modules = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.py"))}
    functions = {name: text for lowered in plans for name, text in lowered.functions.items()}
    modules["generic.py"] = generic.HEAD + "".join(f"\n\n{functions[name]}" for name in sorted(functions))
    return modules


def hip_sources(plans: Sequence[Lowered]) -> dict[str, str]:
    """The HIP kernels' sources and their headers, by file name; {} where no plan has any."""
    kernels = {k.name: k for lowered in plans for k in lowered.kernels() if k.source == "hip"}
    return {**hip.headers(), **{f"{name}.hip": hip.render(kernels[name]) for name in sorted(kernels)}} if kernels else {}


def build(lowered: Lowered, target: GpuTarget, names: list[str], tables: str = "alike", *, use_cache: bool = True) -> Built:
    """Compile a plan's kernels for a chip; `names` are its weights' in the artifact, `tables` is as `place_caches` has it. The same plan, target
    and Triton give the same bytes.

    Raises UnsupportedError when a kernel needs more shared memory than the chip has, LlmcError when Triton refuses one.
    """
    kernels = lowered.kernels()
    modules = sources([lowered])
    made = compiled([k for k in kernels if k.source == "triton"], modules, target, use_cache)
    made |= hip.compiled([k for k in kernels if k.source == "hip"], target, use_cache)
    files: dict[str, bytes] = {}
    listed: list[dict[str, Any]] = []
    facts: dict[str, dict[str, Any]] = {}
    uses: dict[str, list[str]] = {kernel.name: [] for kernel in kernels}
    schemes: dict[str, str] = {}
    weight_bytes: dict[str, int] = {}
    operations: dict[str, int] = {}
    for launch in lowered.launches:
        uses[launch.variants[0].kernel.name].append(launch.scope)  # those for more rows are called instead, not as well
        for name in (v.kernel.name for v in launch.variants):
            schemes[name], weight_bytes[name], operations[name] = launch.scheme, launch.weight_bytes, launch.operations
    for kernel in kernels:
        binary, fact = made[kernel.name]
        found = resources(binary, fact["symbol"])
        shared = fact["shared"] or found.get("lds", 0)
        if shared > target.shared_bytes:
            raise UnsupportedError(
                f"{kernel.function} needs {shared} bytes of shared memory, {target.name} has {target.shared_bytes}",
                "this is a limit of the kernel: please report it",
            )
        files[f"{kernel.name}.{target.extension}"] = binary
        facts[kernel.name] = {
            "symbol": fact["symbol"], "shared": fact["shared"], "threads": fact["warps"] * target.warp, "signature": list(kernel.signature),
            "member": f"{kernel.name}.{target.extension}", "module": kernel.module, "function": kernel.function, "constants": dict(kernel.constants), "scratch": fact["scratch"],
            "overlaps": bool(dict(kernel.constants).get("OVERLAP")), "source": kernel.source,
        }  # fmt: skip
        listed.append({
            "name": kernel.name, "kernel": kernel.function, "source": kernel.source, "bytes": len(binary), "shared_bytes": shared, "threads": fact["warps"] * target.warp,
            "registers": found.get("registers"), "scheme": schemes.get(kernel.name, ""), "weight_bytes": weight_bytes.get(kernel.name, 0), "operations": operations.get(kernel.name, 0), "target": target.arch, "calls": len(uses[kernel.name]), "modules": uses[kernel.name], "reason": "",
        })  # fmt: skip
    files["plan.json"] = json.dumps(_json(lowered, facts, target, names, tables), separators=(",", ":"), sort_keys=True).encode()
    return Built(files, tuple(listed))


def _pack(spec: WeightSpec) -> str:
    """A weight's packing; with the type of its numbers where that is not in it."""
    return f"scales:{spec.scheme.scale_kind}" if spec.pack == "scales" and spec.scheme is not None else spec.pack


def _json(lowered: Lowered, facts: dict[str, Any], target: GpuTarget, names: list[str], tables: str) -> dict[str, Any]:
    slots, slot_of = lowered.slots()
    places = place_caches(lowered.caches, tables)

    def argument(item: list[Any]) -> list[Any]:
        if item[0] == "buffer":
            return ["buffer", slot_of[item[1]], item[2]]
        return item

    return {
        "version": PLAN_VERSION,
        "target": target.name,
        "kernels": facts,
        "weights": [[name, packed_bytes(spec), _pack(spec)] for name, spec in zip(names, lowered.weights, strict=True)],
        "device": [
            {"weight": r.spec, "kernel": r.kernel.name if r.kernel else None, "grid": list(r.grid), "bytes": r.bytes}
            for r in lowered.device
        ],
        "tables": {name: list(values) for name, values in lowered.tables.items()},
        "buffers": slots,
        "logits": slot_of[lowered.logits.id],
        "vocabulary": lowered.vocabulary,
        "carry": lowered.carry,
        "caches": [
            {"groups": c.groups, "dk": c.dk, "dv": c.dv, "kind": c.kind, "table": table, "region": region}
            for c, (table, region) in zip(lowered.caches, places.places, strict=True)
        ],
        "part_floats": lowered.part_floats,
        "launches": [
            {
                "kernel": launch.kernel,
                "scope": launch.scope,
                "when": launch.when,
                "steps": list(launch.steps),
                "rows": launch.rows,
                "arguments": [argument(a) for a in launch.arguments],
                "variants": [[v.most, v.kernel.name, v.grid, v.tile] for v in launch.variants],
                "weight_bytes": launch.weight_bytes,
                "operations": launch.operations,
            }
            for launch in lowered.launches
        ],
    }


def compiled(
    kernels: Iterable[Kernel], modules: dict[str, str], target: GpuTarget, use_cache: bool
) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Binary, symbol, shared memory and warps of each kernel, from the cache or by Triton in processes of their own."""
    tools = toolchain()
    jobs: list[tuple[Kernel, str]] = []
    done: dict[str, tuple[bytes, dict[str, Any]]] = {}
    for kernel in kernels:
        text = modules[f"{kernel.module}.py"]
        if kernel.module == "generic":
            text = generic.HEAD + next(f for f in text.split("\n\n\n") if f"def {kernel.function}(" in f)
        identity = hashlib.sha256(repr((tools, target.name, kernel.name, modules["common.py"], text, "v2")).encode()).hexdigest()
        found = cached(f"{identity}.bin") if use_cache else None
        if found is None:
            jobs.append((kernel, identity))
            continue
        head, _, binary = found.partition(b"\n")
        done[kernel.name] = (binary, json.loads(head))
    if not jobs:
        return done
    with tempfile.TemporaryDirectory(prefix="llmc-triton-") as folder:
        package = Path(folder) / "llmc_kernels"
        package.mkdir()
        for name, source in modules.items():
            (package / name).write_text(source)
        workers = max(1, min(len(os.sched_getaffinity(0)), len(jobs)))
        parts = [jobs[i::workers] for i in range(workers)]
        with ThreadPoolExecutor(workers) as pool:
            for facts in pool.map(lambda part: _work(part, folder, target), parts):
                for kernel, identity, fact in facts:
                    binary = (Path(folder) / f"{kernel.name}.bin").read_bytes()
                    if use_cache:
                        keep(f"{identity}.bin", json.dumps(fact).encode() + b"\n" + binary)
                    done[kernel.name] = (binary, fact)
    return done


def _work(part: list[tuple[Kernel, str]], folder: str, target: GpuTarget) -> list[tuple[Kernel, str, dict[str, Any]]]:
    described = [
        {
            "name": k.name, "module": k.module, "function": k.function, "signature": k.signature, "constants": k.constants, "warps": k.warps, "stages": k.stages,
            "aligned": k.aligned, "registers": k.registers,
        }
        for k, _ in part
    ]  # fmt: skip
    job = json.dumps({"folder": folder, "family": target.family, "arch": target.arch, "kernels": described})
    environment = {**os.environ, "TRITON_CACHE_DIR": str(Path(folder) / "cache")}
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_worker.py"))],
        input=job,
        capture_output=True,
        text=True,
        env=environment,
    )
    answers = {a["name"]: a for a in map(json.loads, ran.stdout.splitlines())}
    found = []
    for kernel, identity in part:
        answer = answers.get(kernel.name)
        if answer is None or "error" in answer:
            reason = answer["error"] if answer else ran.stderr[-2000:] or f"exit status {ran.returncode}"
            raise LlmcError(
                f"{kernel.function} does not compile for {target.name}: {reason}",
                "this is a bug in llmc: please report it with the model's config",
            )
        found.append((kernel, identity, {k: answer[k] for k in ("symbol", "shared", "warps", "scratch")}))
    return found
