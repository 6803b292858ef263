"""`make bench`: llmc and llama.cpp on the same model, in one run, alternating; medians, with the machine's ceilings.

Writes benchmarks/results/DATE-MACHINE.json and a table beside it, and prints the table. llama.cpp is built from llama-cpp-python in a
virtual environment of its own; its flash attention is timed on and off, and the better of the two counts in each cell.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import llmc

PEER = "llama-cpp-python==0.3.36"
PAIRS = (
    ("bf16", "bf16", "bf16"),
    ("8 bits", "int8", "q8_0"),
    ("4 bits", "int4:g32/int8", "q4_0"),
    ("4 bits, bf16 activations", "int4:g32/bf16", "q4_0"),
)
CELLS = ("prefill", "decode", "at_once_8", "at_once_32")


def peer_python(root: Path) -> Path | None:
    """The interpreter of llama.cpp's environment, installed on first use; None (said aloud) when it does not install."""
    python = root / "bin" / "python"
    if not python.exists():
        venv.create(root, with_pip=True)
    ready = subprocess.run([python, "-c", "import llama_cpp, numpy"], capture_output=True).returncode == 0
    if not ready:
        print(f"installing {PEER} (it is compiled: some minutes) …", file=sys.stderr)
        done = subprocess.run([python, "-m", "pip", "install", "-q", PEER, "numpy"])
        if done.returncode:
            print(f"{PEER} does not install here: llama.cpp is left out", file=sys.stderr)
            return None
    return python


def run_json(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1])


def time_llmc(artifact: Path, threads: int) -> dict[str, float]:
    tool = str(Path(sys.executable).parent / "llmc")
    got = run_json([tool, "bench", str(artifact), "--threads", str(threads), "--concurrency", "8,32", "--reps", "1", "--json"])
    cells = {"prefill": got["prefill_tok_s"]["median"], "decode": got["decode_tok_s"]["median"]}
    cells.update({f"at_once_{row['n']}": row["output_tok_s"]["median"] for row in got["concurrent"]})
    return {
        **cells,
        "start": got["start_to_first_token_s"]["median"],
        "rss": got["peak_rss_bytes"]["median"],
        "floor": got["floor"]["decode_tok_s"],
        "ceilings": got["ceilings"],
    }


def time_llama(python: Path, model: Path, threads: int) -> dict[str, float]:
    worker = str(Path(__file__).parent / "llama_cpp_worker.py")
    settings = {
        "threads": threads,
        "prompt": 512,
        "generate": 128,
        "concurrency": [8, 32],
        "concurrent_prompt": 128,
        "concurrent_generate": 128,
    }
    both = run_json([str(python), worker, "time", str(model), json.dumps(settings)])
    start = run_json([str(python), worker, "start", str(model), str(threads)])
    return {
        **{cell: max(both["fa"][cell], both["no_fa"][cell]) for cell in CELLS},
        "start": start["seconds"],
        "rss": start["rss"],
    }


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


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['machine']['cpu']}, {result['threads']} threads, {result['reps']} alternating repetitions, medians (min to max); commit {result['commit']}",
        "",
        "| weights | engine | prefill 512 | decode at 512 | 8 at once | 32 at once | start to first token | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        for engine in ("llmc", "llama.cpp"):
            if engine not in row:
                continue
            cells = row[engine]
            figures = [f"{cells[c]['median']:.0f} ({cells[c]['min']:.0f} to {cells[c]['max']:.0f})" for c in CELLS]
            lines.append(
                f"| {row['name']} | {engine} {row['schemes'][engine]} | {' | '.join(figures)} | {cells['start']['median']:.2f} s | {cells['rss']['median'] / 2**20:.0f} MiB |"
            )
        if "llama.cpp" in row:
            ratios = [f"{row['llmc'][c]['median'] / row['llama.cpp'][c]['median']:.2f}×" for c in CELLS]
            lines.append(
                f"| {row['name']} | **ratio** | {' | '.join(ratios)} | {row['llmc']['start']['median'] / row['llama.cpp']['start']['median']:.2f}× | {row['llmc']['rss']['median'] / row['llama.cpp']['rss']['median']:.2f}× |"
            )
    lines += [
        "",
        f"Ceilings in the same run: read {result['ceilings']['read_gb_s']:.1f} GB/s, int8 {result['ceilings']['int8_gop_s']:.0f} GOP/s, bf16 {result['ceilings']['bf16_gflop_s']:.0f} GFLOP/s.",
        "Shares of the decode floor (weights and cache read once a token): "
        + ", ".join(
            f"{r['name']} {100 * r['llmc']['decode']['median'] / r['llmc']['floor']['median']:.0f} %" for r in result["rows"]
        )
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
    parser.add_argument("--work", default=".build/bench")
    options = parser.parse_args()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    python = peer_python(Path(options.peers))
    rows = []
    ceilings: dict[str, float] = {}
    prepared = []
    for name, scheme, kind in PAIRS:
        artifact = work / f"{scheme.replace(':', '-').replace('/', '-')}.llmc"
        print(f"compiling {scheme} …", file=sys.stderr)
        llmc.compile(options.source, artifact, quant=scheme, target="cpu:native", force=True)
        model = work / f"{kind}.gguf"
        if python is not None and not model.exists():
            subprocess.run(
                [python, str(Path(__file__).parent / "llama_cpp_worker.py"), "quantize", options.source, kind, str(model)],
                check=True,
            )
        prepared.append((name, scheme, kind, artifact, model))
    for name, scheme, kind, artifact, model in prepared:
        mine, theirs = [], []
        for rep in range(options.reps):
            print(f"{name}: {rep + 1} of {options.reps}", file=sys.stderr)
            mine.append(time_llmc(artifact, options.threads))
            if python is not None:
                theirs.append(time_llama(python, model, options.threads))
        ceilings = {k: statistics.median(m["ceilings"][k] for m in mine) for k in mine[0]["ceilings"]}  # type: ignore[index,attr-defined]
        keys = (*CELLS, "start", "rss")
        row: dict[str, Any] = {
            "name": name,
            "schemes": {"llmc": scheme, "llama.cpp": kind},
            "llmc": {k: summary([m[k] for m in mine]) for k in (*keys, "floor")},
        }
        if theirs:
            row["llama.cpp"] = {k: summary([t[k] for t in theirs]) for k in keys}
        rows.append(row)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
    result = {
        "machine": machine(),
        "threads": options.threads,
        "reps": options.reps,
        "commit": commit,
        "peer": PEER,
        "date": datetime.date.today().isoformat(),
        "ceilings": ceilings,
        "rows": rows,
    }
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    level = result["machine"]["levels"][0]
    stem = out / f"{result['date']}-smollm2-{level}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
