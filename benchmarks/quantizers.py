"""`make bench-quant`: llmc's algorithms and other people's quantizers on one model and one text, judged by `llmc eval` alike.

Each row compiles the model with one scheme and one algorithm, and takes the perplexity of the artifact on the judged text, its
divergence from the unquantized artifact's logits there, and its perplexity on other texts that nothing was calibrated on. Head and
embeddings stay in bfloat16 for all. Writes benchmarks/results/DATE-quant.json and .md; with --resume, rows that are in the JSON file
already are not run again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.compare import commit, machine

KEEP = ("--scheme", "lm_head=bf16", "--scheme", "*embed_tokens=bf16")
OURS = (
    ("bf16", "rtn", ()),
    ("int4:g64/bf16", "rtn", ()),
    ("int4:g64/bf16", "awq", ()),
    ("int4:g64/bf16", "gptq", ()),
    ("int4:g64/bf16", "gptq-plain", ()),
    ("int4:g64:asym/bf16", "rtn", ()),
    ("int4:g64:asym/bf16", "awq", ()),
    ("int4:g64:asym/bf16", "gptq", ()),
    ("int4:g64/int8", "gptq", ()),
    ("int4:g128/bf16", "gptq", ()),
    ("int3:g64/bf16", "gptq", ()),
    ("int3:g64:asym/bf16", "gptq", ()),
    ("int2:g32:asym/bf16", "gptq", ()),
    ("int8/int8", "rtn", ()),
    ("int8/int8", "rotate+smoothquant+gptq", ()),
    ("fp8", "rtn", ()),
    ("fp8", "gptq", ()),
    ("bf16", "rtn", ("--kv-dtype", "int8")),
)
THEIRS = (
    ("int4:g64/bf16", "llm-compressor:rtn"),
    ("int4:g64/bf16", "llm-compressor:gptq"),
    ("int4:g64:asym/bf16", "llm-compressor:awq"),
    ("int4:g64/bf16", "gptqmodel:gptq"),
    ("int4:g64:asym/bf16", "gptqmodel:awq"),
    ("int8/int8", "llm-compressor:gptq"),
    ("fp8", "llm-compressor:rtn"),
)


def llmc_json(*arguments: str) -> dict[str, Any]:
    tool = str(Path(sys.executable).parent / "llmc")
    done = subprocess.run([tool, *arguments, "--json"], stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout)
    if done.returncode:
        raise RuntimeError(result["error"]["message"])
    return result


def measure(model: str, row: dict[str, Any], texts: dict[str, tuple[str, int]], calibration: str, python: str) -> None:
    """Compile one row's artifact and judge it; adds to `row`."""
    with tempfile.TemporaryDirectory(prefix="llmc-bench-quant-") as folder:
        out = f"{folder}/model.llmc"
        options = ["--quant", row["scheme"], "--algorithm", row["algorithm"], "--target", "cpu:native", *row["options"]]
        if row["scheme"] != "bf16":
            options += KEEP
        if row["algorithm"] != "rtn":
            options += ["--calibration", calibration]
        if python:
            options += ["--tool-python", python]
        start = time.perf_counter()
        report = llmc_json("compile", model, "-o", out, *options)
        row["compile_s"] = round(time.perf_counter() - start, 1)
        row["quantize_s"] = round(report["seconds"]["quantize"], 1)
        row["bytes"] = report["bytes"]
        row["probe_kl"] = report["conformance"]["kl_mean"]
        row["perplexity"] = {}
        for name, (path, windows) in texts.items():
            judged = llmc_json("eval", out, "--text", path, "--windows", str(windows))
            row["perplexity"][name] = judged["perplexity"]


def table(result: dict[str, Any]) -> str:
    names = list(result["texts"])
    lines = [
        f"{result['machine']['cpu']}, {result['machine']['threads']} threads; {result['model']}; calibrated on {result['calibration']}; commit {result['commit']}.",
        "Perplexities are of the compiled artifact; head and embeddings are bfloat16. Seconds are those of choosing the codes, with the tool's own start.",
        "",
        f"| scheme | algorithm | {' | '.join(f'{n} ({w} × 512)' for n, w in result['texts'].items())} | KL on the probe | MB | seconds |",
        f"|---|---|{'---|' * (len(names) + 3)}",
    ]
    for row in result["rows"]:
        scheme = " ".join([row["scheme"], *row["options"]])
        if "error" in row:
            lines.append(f"| {scheme} | {row['algorithm']} | {row['error']} |{' |' * (len(names) + 2)}")
            continue
        figures = " | ".join(f"{row['perplexity'][n]:.2f}" for n in names)
        lines.append(
            f"| {scheme} | {row['algorithm']} | {figures} | {row['probe_kl']:.4f} | {row['bytes'] / 1e6:.1f} | {row['quantize_s']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint: a folder or a .gguf file")
    parser.add_argument("--calibration", required=True, help="the text that algorithms see")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE", required=True, help="a text to judge by")
    parser.add_argument(
        "--windows", type=int, default=100, help="windows of 512 tokens of the first text; the others have a fifth"
    )
    parser.add_argument("--tool", action="append", default=[], metavar="TOOL=PYTHON", help="an interpreter that has another tool")
    parser.add_argument("--only", default="", help="rows whose scheme and algorithm contain this")
    parser.add_argument("--resume", action="store_true", help="keep the rows that today's results have")
    parser.add_argument("--out", default="benchmarks/results")
    given = parser.parse_args()
    texts = dict(pair.split("=", 1) for pair in given.text)
    pythons = dict(pair.split("=", 1) for pair in given.tool)
    counts = {name: given.windows if i == 0 else max(given.windows // 5, 1) for i, name in enumerate(texts)}
    where = Path(given.out) / f"{datetime.date.today()}-quant.json"
    old = json.loads(where.read_text())["rows"] if given.resume and where.exists() else []
    rows: list[dict[str, Any]] = [{"scheme": s, "algorithm": a, "options": list(o)} for s, a, o in OURS]
    rows += [{"scheme": s, "algorithm": a, "options": []} for s, a in THEIRS]
    result = {
        "machine": machine(), "model": Path(given.model).name, "calibration": Path(given.calibration).name, "texts": counts,
        "commit": commit(), "rows": [],
    }  # fmt: skip
    key_of = lambda row: (row["scheme"], row["algorithm"], tuple(row["options"]))  # noqa: E731
    done = {key_of(row): row for row in old if "error" not in row}
    for row in rows:
        tool, colon, _ = row["algorithm"].partition(":")
        if key_of(row) in done or given.only not in f"{row['scheme']} {row['algorithm']} {' '.join(row['options'])}":
            continue
        if colon and tool not in pythons:
            row["error"] = f"not run: no --tool {tool}=PYTHON"
        else:
            print(f"{row['scheme']} {row['algorithm']} …", file=sys.stderr, flush=True)
            try:
                paths = {name: (path, counts[name]) for name, path in texts.items()}
                measure(given.model, row, paths, given.calibration, pythons[tool] if colon else "")
            except RuntimeError as error:
                row["error"] = str(error)
        done[key_of(row)] = row
        result["rows"] = [done[key_of(r)] for r in rows if key_of(r) in done]
        where.write_text(json.dumps(result, indent=1) + "\n")
        where.with_suffix(".md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
