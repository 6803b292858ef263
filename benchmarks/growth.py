"""`make bench-growth`: how llmc's rates change with the context, the length of a prompt and the number of requests, each beside its floor.

Writes benchmarks/results/DATE-growth-MODEL-LEVEL.json and a plot (.svg) beside it. Every point is `llmc bench` of one artifact on this machine,
with the ceilings of its own run; the floor is the time that bytes and operations take at those ceilings.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
from pathlib import Path
from typing import Any

import llmc

from benchmarks.compare import commit, machine, run_json, slug

WIDTH, HEIGHT, MARGIN = 420, 300, 56
Series = list[tuple[float, float]]


def bench(artifact: Path, reps: int, *options: str) -> dict[str, Any]:
    tool = str(Path(sys.executable).parent / "llmc")
    print(" ".join(options), file=sys.stderr, flush=True)
    return dict(run_json([tool, "bench", str(artifact), "--reps", str(reps), "--json", *options]))


def measure(artifact: Path, contexts: list[int], requests: list[int], reps: int) -> dict[str, Any]:
    """The points of the three curves: x, the measured rate (median, min, max) and the floor's."""
    few = ("--concurrency", "1", "--concurrent-prompt-len", "8", "--concurrent-gen-len", "2")
    alone = {n: bench(artifact, reps, "--prompt-len", str(n), "--gen-len", "48", *few) for n in contexts}
    many = bench(artifact, reps, "--prompt-len", "64", "--gen-len", "16", "--concurrency", ",".join(map(str, requests)))
    return {
        "prefill": [{"x": n, **got["prefill_tok_s"], "floor": got["floor"]["prefill_tok_s"]} for n, got in alone.items()],
        "decode": [{"x": n, **got["decode_tok_s"], "floor": got["floor"]["decode_tok_s"]} for n, got in alone.items()],
        "at once": [{"x": row["n"], **row["output_tok_s"], "floor": row["floor_tok_s"]} for row in many["concurrent"]],
        "ceilings": many["ceilings"],
    }


def panel(left: float, title: str, xlabel: str, points: list[dict[str, float]]) -> str:
    """One plot with logarithmic axes: measured rates with their spread, and the floor's, dashed."""
    highest = max(max(p["max"], p["floor"]) for p in points)
    lowest = min(p["min"] for p in points)
    x0, x1 = (math.log2(f(p["x"] for p in points)) for f in (min, max))
    y0, y1 = math.floor(math.log2(lowest)), math.ceil(math.log2(highest))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log2(x) - x0) / max(x1 - x0, 1e-9)
        up = (math.log2(y) - y0) / max(y1 - y0, 1e-9)
        return left + MARGIN + across * (WIDTH - 1.4 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 1.8 * MARGIN)

    def line(values: Series, style: str) -> str:
        return f'<polyline fill="none" {style} points="{" ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in values)}"/>'

    drawn = [f'<text x="{left + WIDTH / 2}" y="20" text-anchor="middle" font-weight="bold">{title}</text>']
    for power in range(y0, y1 + 1):
        x, y = place(2**x0, 2.0**power)
        drawn.append(f'<line x1="{x:.1f}" x2="{left + WIDTH - 0.4 * MARGIN:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        drawn.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{2**power:g}</text>')
    for point in points:
        x, y = place(point["x"], 2.0**y0)
        drawn.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{point["x"]:g}</text>')
        (_, low), (_, high) = place(point["x"], point["min"]), place(point["x"], point["max"])
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="#06c" stroke-width="3"/>')
    drawn.append(line([(p["x"], p["floor"]) for p in points], 'stroke="#999" stroke-dasharray="5 4"'))
    drawn.append(line([(p["x"], p["median"]) for p in points], 'stroke="#06c" stroke-width="2"'))
    drawn.append(f'<text x="{left + WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">{xlabel}</text>')
    return "".join(drawn)


def plot(result: dict[str, Any]) -> str:
    panels = [
        ("prefill, tokens a second", "tokens of the prompt", "prefill"),
        ("decode, tokens a second", "tokens of context", "decode"),
        ("requests at once, output tokens a second", "requests", "at once"),
    ]
    body = "".join(panel(i * WIDTH, title, xlabel, result[key]) for i, (title, xlabel, key) in enumerate(panels))
    size = f'width="{len(panels) * WIDTH}" height="{HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11"><rect {size} fill="white"/>{body}</svg>\n'


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a checkpoint: a folder or a .gguf file")
    parser.add_argument("--quant", default="int4:g32/int8")
    parser.add_argument("--contexts", type=numbers, default=[64, 128, 256, 512, 1024, 2048, 4096, 8000], metavar="N,N")
    parser.add_argument("--requests", type=numbers, default=[1, 2, 4, 8, 16, 32, 64, 128, 256], metavar="N,N")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--work", default=".build/bench")
    parser.add_argument("--out", default="benchmarks/results")
    given = parser.parse_args()
    Path(given.work).mkdir(parents=True, exist_ok=True)
    artifact = Path(given.work) / f"growth-{slug(given.quant)}.llmc"
    llmc.compile(given.source, artifact, quant=given.quant, target="cpu:native", force=True)
    here = machine()
    result = {
        "machine": here, "model": Path(given.source).name, "scheme": given.quant, "reps": given.reps, "commit": commit(),
        **measure(artifact, given.contexts, given.requests, given.reps),
    }  # fmt: skip
    stem = Path(given.out) / f"{datetime.date.today()}-growth-{slug(Path(given.source).name.split('.')[0])}-{here['levels'][0]}"
    Path(f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    Path(f"{stem}.svg").write_text(plot(result))
    for key in ("prefill", "decode", "at once"):
        for point in result[key]:
            print(
                f"{key:8} {point['x']:6} {point['median']:9.1f} tok/s  {100 * point['median'] / point['floor']:4.0f} % of the floor"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
