"""GPU targets on a machine that has one: `prepare` compiles with no GPU, `check` and `bench` run there with numpy alone.

`python -m benchmarks.gpu prepare DIR --target cuda:sm_90` writes tiny artifacts with the CPU's logits beside them, and plans without
weights of a large model's shape. `check DIR` compares the device's logits with those, token by token, in chunks and in mixed batches,
which must give equal bits. `bench DIR` times the plans with random weights and prints JSON: decode, prefill and start, beside the
device's own copy rate and, where torch is installed, its rate of bfloat16 products.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CHECKED = (
    ("llama", {"dtype": "bf16"}), ("llama", {"dtype": "bf16", "quant": "int4:g32"}), ("llama", {"dtype": "bf16", "quant": "int8"}),
    ("llama", {"dtype": "bf16", "quant": "int4:g64:asym/int8"}), ("qwen3", {"dtype": "bf16", "quant": "fp8"}), ("gemma2", {"dtype": "bf16", "quant": "nf4"}),
    ("gpt2", {"dtype": "f16"}), ("gpt_oss", {"dtype": "bf16"}), ("mixtral", {"dtype": "bf16", "quant": "int4:g32"}), ("bloom", {"dtype": "f32"}),
)  # fmt: skip
LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "head_dim": 128, "tie_word_embeddings": False, "architectures": ["LlamaForCausalLM"], "model_type": "llama",
}  # fmt: skip
TIMED = (
    ("bf16", {"dtype": "bf16"}),
    ("int4-g128", {"dtype": "bf16", "quant": "int4:g128", "scheme": ("lm_head=bf16", "*embed_tokens=bf16")}),
)
TOKENS = 150
CLOSE = 4e-2  # of the largest logit: bfloat16 roundings of cache and activations that fall the other way


def prepare(folder: Path, target: str) -> None:
    """Compile everything that the device needs; no GPU is used."""
    import llmc

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from models import save_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    for key, options in CHECKED:
        name = "-".join([key, *map(str, options.values())]).replace(":", "-").replace("/", "-")
        source = folder / f"{key}.checkpoint"
        if not source.exists():
            save_checkpoint(key, source)
        llmc.compile(source, folder / f"{name}.llmc", target=("cpu:native", target), force=True, **options)
        ids = np.random.default_rng(0).integers(3, 256, TOKENS).tolist()
        with llmc.load(folder / f"{name}.llmc", target="cpu") as model:
            np.savez(folder / f"{name}.npz", ids=ids, logits=model.logits(ids))
        print(name, flush=True)
    shape = folder / "llama-8b.config"
    shape.mkdir(exist_ok=True)
    (shape / "config.json").write_text(json.dumps(LLAMA_8B))
    for name, options in TIMED:
        llmc.compile(shape, folder / f"llama-8b-{name}.plan.llmc", target=(target,), weights="none", force=True, **options)
        print(f"llama-8b-{name}", flush=True)


class Session:
    """An executor on the device with a cache, stepped by hand."""

    def __init__(self, path: Path, driver: Any = None, **sizes: Any) -> None:
        from llmc.runtime.artifact import open_artifact
        from llmc.runtime.executors.choose import driver_module
        from llmc.runtime.executors.launch import LaunchExecutor

        self.artifact = open_artifact(path)
        target = next(t["name"] for t in self.artifact.manifest["targets"] if not t["name"].startswith("cpu"))
        self.executor = LaunchExecutor(
            self.artifact, target, driver or driver_module(target.partition(":")[0]).open_driver(), **sizes
        )

    def step(self, parts: list[tuple[np.ndarray, int, list[int]]], every: bool = False) -> None:
        """parts: tokens, the position of the first, blocks. Logits of all tokens, or of each part's last."""
        from llmc.runtime.executors.cpu import Batch

        counts = [len(p[0]) for p in parts]
        width = max(len(p[2]) for p in parts)
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self.executor.run(
            Batch(
                np.concatenate([p[0] for p in parts]).astype(np.int32),
                np.concatenate([np.arange(p[1], p[1] + len(p[0])) for p in parts]).astype(np.int32),
                start,
                np.array([p[1] for p in parts], np.int32),
                np.array([p[2] + [0] * (width - len(p[2])) for p in parts], np.int32),
                np.arange(start[-1], dtype=np.int32) if every else (start[1:] - 1).astype(np.int32),
            )
        )

    def close(self) -> None:
        self.executor.close()
        self.artifact.close()


def check(folder: Path) -> int:
    """Every checked artifact on the device; 1 when one differs."""
    failed = 0
    for path in sorted(folder.glob("*.npz")):
        wanted = np.load(path)
        ids, blocks = wanted["ids"].astype(np.int32), list(range(1, 9))
        session = Session(path.with_suffix(".llmc"), max_tokens=192, max_sequences=4, max_rows=192, context=256, blocks=32)
        session.step([(ids, 0, blocks)], every=True)
        whole = session.executor.logits(TOKENS).copy()
        other, pieces, at = ids[::-1][:37].copy(), [], 0
        for size in (1, 64, 5, 1, 1, 40):
            session.step([(other, 0, [20, 21]), (ids[at : at + size], at, list(range(10, 18)))], every=True)
            pieces.append(session.executor.logits(37 + size)[37:].copy())
            at += size
        while at < TOKENS:
            session.step([(ids[at : at + 1], at, list(range(10, 18)))], every=True)
            pieces.append(session.executor.logits(1).copy())
            at += 1
        error = float(np.abs(whole - wanted["logits"]).max() / np.abs(wanted["logits"]).max())
        parts = np.concatenate(pieces)
        same = parts.tobytes() == whole.tobytes()
        fine = error < CLOSE and same
        failed += not fine
        print(
            f"{path.stem:32} error {error:.2e}  {'same bits' if same else f'bits differ by {np.abs(parts - whole).max():.1e}'}  {'ok' if fine else 'FAILED'}",
            flush=True,
        )
        session.close()
    return int(failed > 0)


def torch_rate() -> float | None:
    """torch's own rate of bfloat16 products, operations a second; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)


def timed(work: Any, session: Session, reps: int) -> float:
    """Median seconds of a call, the device waited for."""
    work()
    work()
    found = []
    for _ in range(reps):
        session.executor.synchronize()
        start = time.perf_counter()
        work()
        session.executor.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def bench(folder: Path) -> int:
    """Times of the plans with random weights, as JSON on standard output."""
    results: dict[str, Any] = {"torch_bf16_flop_s": torch_rate(), "plans": {}}
    for path in sorted(folder.glob("*.plan.llmc")):
        start = time.perf_counter()
        session = Session(
            path, max_tokens=8192, max_sequences=64, max_rows=64, context=8192, blocks=64 * 66 + 16, random_weights=1
        )
        session.executor.synchronize()
        row: dict[str, Any] = {"load_s": time.perf_counter() - start}
        copy = session.executor.copy_rate()
        plan = session.artifact.manifest["memory_plan"]
        parameters = session.artifact.manifest["model"]["parameters"]
        table = int(LLAMA_8B["vocab_size"]) * int(LLAMA_8B["hidden_size"]) * 2
        token = np.array([17], np.int32)
        blocks = [list(range(i * 66, (i + 1) * 66)) for i in range(64)]
        one = timed(lambda: session.step([(token, 500, blocks[0])]), session, 30)
        read = plan["weight_bytes"] - table + plan["cache_bytes_per_block"] / 32 * 500
        row |= {"copy_byte_s": copy, "decode_1_s": one, "decode_1_of_copy": read / one / copy}
        many = timed(lambda: session.step([(token, 2000, b) for b in blocks]), session, 10)
        row |= {
            "decode_64_at_2k_s": many,
            "decode_64_tok_s": 64 / many,
            "decode_64_of_copy": (plan["weight_bytes"] - table + 64 * plan["cache_bytes_per_block"] / 32 * 2000) / many / copy,
        }
        prompt = np.random.default_rng(0).integers(0, 1000, 8192 - 32).astype(np.int32)
        prefill = timed(lambda: session.step([(prompt, 0, list(range(256)))]), session, 3)
        operations = 2 * (parameters - table / 2) * len(prompt) + 32 * 2 * 32 * 128 * len(prompt) ** 2
        row |= {"prefill_8k_s": prefill, "prefill_flop_s": operations / prefill}
        if results["torch_bf16_flop_s"]:
            row["prefill_of_torch"] = row["prefill_flop_s"] / results["torch_bf16_flop_s"]
        results["plans"][path.name] = row
        print(json.dumps({path.name: row}), file=sys.stderr, flush=True)
        session.close()
    print(json.dumps(results, indent=1))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prepare", "check", "bench"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="cuda:sm_90")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.folder, options.target)
        return 0
    return check(options.folder) if options.what == "check" else bench(options.folder)


if __name__ == "__main__":
    sys.exit(main())
