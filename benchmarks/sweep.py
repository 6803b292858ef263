"""`make sweep`: compile a tiny random checkpoint of every decoder in transformers and compare it with transformers' own logits.

Writes docs/models.md and, with --json, what it found. Each configuration is saved as a checkpoint, compiled by the command's own
function for this machine, and judged in float32 against eager attention: a prefill, the same tokens one by one, and mixed and
chunked batches, which must give the same bits.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import io
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import plans
from benchmarks.architectures import keys, make_config

TOKENS = 40
CLOSE = 2e-3  # of the largest logit, float32
CLOSE_BF16 = 6e-2
FAIR = 1.5  # times what transformers' own bf16 run is off
LIMIT = 600  # seconds a configuration
MOST = 60_000_000  # parameters of a tiny checkpoint


@dataclass
class Row:
    """What came of one configuration. `status`: passes, refused, wrong, fails, or none (no tiny configuration)."""

    key: str
    status: str = "fails"
    reason: str = ""
    error: float = 0.0
    error_bf16: float = 0.0
    fallbacks: list[str] = field(default_factory=list)
    seconds: float = 0.0


def examine(key: str, bf16: bool) -> Row:
    """Save, compile and compare one configuration."""
    row, start = Row(key), time.perf_counter()

    def late(*_: Any) -> None:
        raise TimeoutError(f"longer than {LIMIT} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory(prefix="llmc-sweep-") as folder:
            _examine(row, Path(folder), bf16)
    except Exception as error:
        row.reason = row.reason or f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if os.environ.get("SWEEP_TRACE"):
            traceback.print_exc()
    finally:
        signal.alarm(0)
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def _examine(row: Row, folder: Path, bf16: bool) -> None:
    import llmc
    import torch
    from llmc.errors import UnsupportedError
    from transformers import AutoModelForCausalLM, logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        config = make_config(row.key)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > MOST:
            raise ValueError(f"{size / 1e6:.0f} M parameters")
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    except Exception as error:
        row.status, row.reason = "none", f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return
    randomize(model)
    model.save_pretrained(folder / "source")
    try:
        rope = getattr(config, "rope_parameters", None) or {}
        context = (
            int(rope.get("original_max_position_embeddings", 0)) if rope.get("rope_type") == "longrope" else 0
        )  # its short branch
        report = llmc.compile(str(folder / "source"), folder / "a.llmc", target="cpu:native", context=context)
    except UnsupportedError as error:
        row.status, row.reason = "refused", str(error).splitlines()[0][:300]
        return
    row.fallbacks = sorted({f["op"] for f in report.fallbacks})
    ids = [(i * i * 7 + 11 * i + 5) % (min(getattr(config, "vocab_size", 256), 256) - 5) + 3 for i in range(TOKENS)]
    with torch.no_grad():
        wanted = model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    scale = float(abs(wanted).max())
    with llmc.load(folder / "a.llmc", threads=2) as artifact:
        got = artifact.logits([ids])[0]
        row.error = float(abs(got - wanted).max()) / scale
        sequences = [ids, ids[:7], ids[3:24]]
        alone = [artifact.logits([s])[0] for s in sequences]
        ways = {"one by one": artifact.logits(sequences, chunk=1), "chunks": artifact.logits(sequences, chunk=5)}
        ways |= {f"schedule {seed}": artifact.logits(sequences, schedule_seed=seed) for seed in range(2)}
    if not row.error < CLOSE:
        row.status, row.reason = "wrong", f"logits differ by {row.error:.2g} of the largest"
        return
    for name, results in ways.items():
        if any(a.tobytes() != b.tobytes() for a, b in zip(alone, results, strict=True)):
            row.status, row.reason = "wrong", f"other bits when computed {name}"
            return
    if bf16:
        model.to(torch.bfloat16).save_pretrained(folder / "half")
        with torch.no_grad():
            own = model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
            wanted = model.float()(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
        theirs = float(abs(own - wanted).max()) / float(abs(wanted).max())
        llmc.compile(str(folder / "half"), folder / "b.llmc", target="cpu:native", context=context)
        with llmc.load(folder / "b.llmc", threads=2) as artifact:
            by_token = abs(artifact.logits(ids) - wanted).max(1) / float(abs(wanted).max())
        row.error_bf16 = float(by_token.max())
        routed = any(name.endswith("experts") for name, _ in model.named_modules())
        flipped = int((by_token > CLOSE_BF16).sum())  # a rounding sends a token to another expert where two are nearly as good
        if not row.error_bf16 < max(CLOSE_BF16, FAIR * theirs) and not (routed and flipped <= TOKENS // 20):
            row.status, row.reason = (
                "wrong",
                f"in bf16 logits differ by {row.error_bf16:.2g} of the largest, transformers' own by {theirs:.2g}",
            )
            return
    row.status = "passes"


def randomize(model: Any) -> None:
    """Weights of the size that trained ones have; vectors near what they start from."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim <= 1:
                value.add_(noise * 0.1)
            elif "embed" in name or "wte" in name:
                value.copy_(noise)
            else:
                value.copy_(noise / math.sqrt(value.shape[-1]))


def table(rows: list[Row]) -> str:
    """docs/models.md."""
    counts = {s: sum(r.status == s for r in rows) for s in ("passes", "refused", "wrong", "fails", "none")}
    words = {"passes": "passes", "refused": "refused", "wrong": "**wrong**", "fails": "**fails**", "none": "not tried"}
    lines = [
        "# Models",
        "",
        "Written by `make sweep`: do not edit. Each row is a tiny random checkpoint, compiled and compared with transformers' eager",
        f"logits in float32: a prefill, token by token, and in mixed, chunked batches. {counts['passes']} of {len(rows) - counts['none']} pass, "
        f"{counts['refused']} are refused, {counts['fails']} fail, {counts['wrong']} are wrong; {counts['none']} have no tiny configuration.",
        "",
        "| configuration | | largest error | bf16 | generic kernels, or the reason |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: r.key):
        error = f"{row.error:.1e}" if row.error else ""
        half = f"{row.error_bf16:.1e}" if row.error_bf16 else ""
        reason = re.sub(r'"[^"]*/site-packages/', '"', row.reason or ", ".join(row.fallbacks)).replace("|", "\\|")
        lines.append(f"| {row.key} | {words[row.status]} | {error} | {half} | {reason} |")
    lines += plans.table(json.loads(plans.RESULTS.read_text())) if plans.RESULTS.exists() else []
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("keys", nargs="*", help="configurations (default: all)")
    parser.add_argument("--out", default="")
    parser.add_argument("--json", default="")
    parser.add_argument("--again", action="store_true", help="write --out from --json without running anything")
    parser.add_argument("--bf16", action="store_true", help="bf16 checkpoints as well")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if options.again:
        rows = [Row(**fields) for fields in json.loads(Path(options.json).read_text())]
        Path(options.out).write_text(table(rows))
        return 0
    rows: list[Row] = []
    chosen = options.keys or keys()
    fresh = 24 * options.workers  # configurations before new processes take over: torch.export leaves much behind
    for start in range(0, len(chosen), fresh):
        with concurrent.futures.ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(examine, key, options.bf16): key for key in chosen[start : start + fresh]}
            for future in concurrent.futures.as_completed(futures):
                try:
                    row = future.result()
                except concurrent.futures.BrokenExecutor:
                    row = Row(futures[future], reason="the process died")
                rows.append(row)
                print(
                    f"{len(rows):3}/{len(chosen)} {row.key:28} {row.status:8} {row.seconds:6.1f} s  {row.reason[:150]}",
                    flush=True,
                )
    if options.out:
        Path(options.out).write_text(table(rows))
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(r) for r in sorted(rows, key=lambda r: r.key)], indent=1) + "\n")
    print({s: sum(r.status == s for r in rows) for s in ("passes", "refused", "wrong", "fails", "none")})
    return 0 if all(r.status in ("passes", "refused", "none") for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
