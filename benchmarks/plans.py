"""`make plans`: capture, passes and kernels of large models from their configurations alone, with time, memory, and what they need.

Each is compiled with `--weights none` in a process of its own. Writes benchmarks/results/plans.json, from which docs/models.md
lists what a machine must hold.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "plans.json"
SCHEMES = ("none", "int8", "int4")
LLAMA3 = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_parameters": LLAMA3}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-3.1-70B": ("llama", {**LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}),
    "Llama-3.1-405B": ("llama", {**LLAMA, "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128}),
    "Qwen3-235B-A22B": ("qwen3_moe", {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "max_position_embeddings": 131072, "norm_topk_prob": True}),
    "DeepSeek-V3": ("deepseek_v3", {"max_position_embeddings": 131072}),
    "gpt-oss-120b": ("gpt_oss", {"num_hidden_layers": 36, "num_local_experts": 128, "num_experts_per_tok": 4, "max_position_embeddings": 131072}),
    "Qwen3-Next-80B-A3B": ("qwen3_next", {"num_experts": 512, "num_experts_per_tok": 10, "max_position_embeddings": 131072}),
}  # fmt: skip


def plan(name: str, scheme: str) -> dict[str, Any]:
    """Compile one plan in this process; run by `main` in a fresh one."""
    import llmc
    from llmc.runtime.artifact import open_artifact
    from llmc.runtime.plan import BLOCK, total_bytes
    from transformers import AutoConfig

    kind, fields = SHAPES[name]
    with tempfile.TemporaryDirectory(prefix="llmc-plan-") as folder:
        AutoConfig.for_model(kind, **fields, dtype="bfloat16").save_pretrained(folder)
        start = time.perf_counter()
        llmc.compile(folder, Path(folder) / "plan.llmc", quant=scheme, kv_dtype="bf16", target="cpu:x86-64-v4", weights="none")
        seconds = time.perf_counter() - start
        with open_artifact(Path(folder) / "plan.llmc") as artifact:
            manifest = artifact.manifest
    sizes = manifest["memory_plan"]
    return {
        "model": name,
        "scheme": scheme,
        "parameters": manifest["model"]["parameters"],
        "seconds": round(seconds, 1),
        "peak_bytes": 1024 * max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)),
        "weight_bytes": sizes["weight_bytes"],
        "cache_bytes_per_token": sizes["cache_bytes_per_block"] / BLOCK * sizes["reaches"].count(0),
        "state_bytes_per_request": sizes["state_bytes_per_request"],
        "total_bytes": {f"{r}x{c}": total_bytes(manifest, r, c) for r in (1, 8, 64) for c in (4096, 32768, 131072)},
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The part of docs/models.md on memory."""
    if not rows:
        return []
    giga = lambda n: f"{n / 1e9:.3g}" if n < 999.5e9 else f"{n / 1e9:.0f}"  # noqa: E731
    columns = list(rows[0]["total_bytes"])
    lines = [
        "",
        "## What large models need",
        "",
        "From their configurations alone (`make plans`; `llmc compile DIR --weights none` and `llmc inspect` say it of any",
        "other). In GB of 10⁹ bytes, with a bfloat16 cache: requests at once × positions each.",
        "A token's cache is what it adds for good: layers with a window keep that alone.",
        "",
        "| model | weights | GB | cache a token | " + " | ".join(c.replace("x", " × ") for c in columns) + " | plan takes |",
        "|---" * (len(columns) + 5) + "|",
    ]
    for row in rows:
        cells = [giga(row["total_bytes"][c]) for c in columns]
        scheme = "bf16" if row["scheme"] == "none" else row["scheme"]
        lines.append(
            f"| {row['model']} | {scheme} | {giga(row['weight_bytes'])} | {row['cache_bytes_per_token'] / 1e3:.4g} kB | "
            + " | ".join(cells)
            + f" | {row['seconds']:.0f} s, {row['peak_bytes'] / 1e9:.1f} GB |"
        )
    return lines


def main() -> int:
    if len(sys.argv) == 3:
        print(json.dumps(plan(*sys.argv[1:])))
        return 0
    rows = []
    for name in SHAPES:
        for scheme in SCHEMES:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.plans", name, scheme], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name} {scheme}: {rows[-1]['seconds']} s, {rows[-1]['peak_bytes'] / 1e9:.1f} GB", flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
