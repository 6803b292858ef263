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
    ("fp8", {"dtype": "bf16", "quant": "fp8", "scheme": ("lm_head=bf16", "*embed_tokens=bf16")}),
)
TOKENS = 150
CLOSE = 4e-2  # of the largest logit: bfloat16 roundings of cache and activations that fall the other way
FLIPS = 1 / 50  # of tokens of a mixture of experts: a router's near tie that falls the other way sends one to another expert


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
        self.executor.run(self.batch(parts, every))

    def batch(self, parts: list[tuple[np.ndarray, int, list[int]]], every: bool = False) -> Any:
        from llmc.runtime.executors.cpu import Batch

        counts = [len(p[0]) for p in parts]
        width = max(len(p[2]) for p in parts)
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return Batch(
            np.concatenate([p[0] for p in parts]).astype(np.int32),
            np.concatenate([np.arange(p[1], p[1] + len(p[0])) for p in parts]).astype(np.int32),
            start,
            np.array([p[1] for p in parts], np.int32),
            np.array([p[2] + [0] * (width - len(p[2])) for p in parts], np.int32),
            np.arange(start[-1], dtype=np.int32) if every else (start[1:] - 1).astype(np.int32),
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
        errors = np.abs(whole - wanted["logits"]).max(1) / np.abs(wanted["logits"]).max()
        allowed = int(TOKENS * FLIPS) if path.stem.startswith(("mixtral", "gpt_oss")) else 0
        error = float(np.sort(errors)[-1 - allowed])
        parts = np.concatenate(pieces)
        same = parts.tobytes() == whole.tobytes()
        fine = error < CLOSE and same
        failed += not fine
        print(
            f"{path.stem:32} error {error:.2e} (largest {errors.max():.2e})  {'same bits' if same else f'bits differ by {np.abs(parts - whole).max():.1e}'}  {'ok' if fine else 'FAILED'}",
            flush=True,
        )
        session.close()
    return int(failed > 0)


def torch_rates() -> dict[str, Any]:
    """What torch reaches on the device: its bfloat16 products, operations a second; {} without torch."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    rate = 20 * 2 * 8192**3 / (time.perf_counter() - start)
    del a, b
    torch.cuda.empty_cache()
    return {"device": torch.cuda.get_device_name(), "torch_bf16_flop_s": rate}


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


def streamed(work: Any, session: Session, reps: int) -> float:
    """Seconds a call when the next is asked for before the last has ended: what the device takes."""
    work()
    session.executor.synchronize()
    start = time.perf_counter()
    for _ in range(reps):
        work()
    session.executor.synchronize()
    return (time.perf_counter() - start) / reps


def show(name: str, parts: list[dict[str, Any]], copy: float) -> None:
    """Where a step's time goes, on standard error."""
    print(f"{name}: {sum(p['seconds'] for p in parts) * 1e3:.3f} ms in kernels", file=sys.stderr)
    for part in parts[:14]:
        share = f"{part['weight_bytes'] / part['seconds'] / copy:6.1%} of copy" if part["weight_bytes"] else ""
        each = part["seconds"] / part["launches"] * 1e6
        print(
            f"  {part['seconds'] * 1e3:8.3f} ms {part['launches']:4} x {each:8.2f} us  {part['kernel'][:34]:34} {share}  {part['module']}",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def bench(folder: Path, only: str = "") -> int:
    """Times of the plans with random weights, as JSON on standard output."""
    from llmc.runtime.sampling import SamplingRow

    results: dict[str, Any] = {**torch_rates(), "plans": {}}
    shape = LLAMA_8B
    layers, heads, head = int(shape["num_hidden_layers"]), int(shape["num_attention_heads"]), int(shape["head_dim"])  # type: ignore[call-overload]
    for path in sorted(folder.glob("*.plan.llmc")):
        if only not in path.name:
            continue
        start = time.perf_counter()
        session = Session(
            path, max_tokens=8192, max_sequences=64, max_rows=64, context=8192, blocks=64 * 256 + 16, random_weights=1
        )
        session.executor.synchronize()
        row: dict[str, Any] = {"load_s": time.perf_counter() - start}
        copy = session.executor.copy_rate()
        plan = session.artifact.manifest["memory_plan"]
        parameters = session.artifact.manifest["model"]["parameters"]
        table = int(shape["vocab_size"]) * int(shape["hidden_size"])  # type: ignore[call-overload]
        weights, position = plan["weight_bytes"] - 2 * table, plan["cache_bytes_per_block"] / 32
        token = np.array([17], np.int32)
        blocks = [list(range(i * 256, (i + 1) * 256)) for i in range(64)]
        greedy = SamplingRow(0, 0.0, 1.0, 0.0, 0, 1.0, 0.0, 0.0, 0, 0)

        def one() -> None:
            session.step([(token, 500, blocks[0])])

        def drawn() -> None:
            one()
            session.executor.sample([greedy])

        def many(at: int) -> None:
            session.step([(token, at, b) for b in blocks])

        row["copy_byte_s"] = copy
        row["decode_1_s"] = timed(drawn, session, 30)
        row["decode_1_device_s"] = streamed(one, session, 30)
        read = weights + 500 * position
        row |= {f"decode_1_{k}of_copy": read / row[f"decode_1_{k}s"] / copy for k in ("", "device_")}
        for name, at in (("2k", 2000), ("8k", 8100)):
            row[f"decode_64_at_{name}_s"] = timed(lambda at=at: many(at), session, 6)  # type: ignore[misc]
            row[f"decode_64_at_{name}_tok_s"] = 64 / row[f"decode_64_at_{name}_s"]
            row[f"decode_64_at_{name}_of_copy"] = (weights + 64 * at * position) / row[f"decode_64_at_{name}_s"] / copy
        prompt = np.random.default_rng(0).integers(0, 1000, 8192 - 32).astype(np.int32)
        part = [(prompt, 0, list(range(256)))]
        prefill = timed(lambda: session.step(part), session, 3)
        linear = 2 * (parameters - 2 * table) * len(prompt)  # the head runs for the last token alone
        row |= {"prefill_8k_s": prefill, "prefill_flop_s": (linear + layers * 2 * heads * head * len(prompt) ** 2) / prefill}
        if "torch_bf16_flop_s" in results:
            row["prefill_of_torch"] = row["prefill_flop_s"] / results["torch_bf16_flop_s"]
        for name, parts in (("1 at 500", [(token, 500, blocks[0])]), ("64 at 2k", [(token, 2000, b) for b in blocks]), ("64 at 8k", [(token, 8100, b) for b in blocks]), ("8k tokens", part)):  # fmt: skip
            profile = session.executor.profile(session.batch(parts))
            show(f"{path.name} {name}", profile, copy)
            row.setdefault("profiles", {})[name] = profile[:14]
            attention = [p for p in profile if p["kernel"].startswith(("attend", "merge"))]
            if name == "64 at 8k":
                row["attention_64_at_8k_of_copy"] = 64 * 8100 * position / sum(p["seconds"] for p in attention) / copy
        results["plans"][path.name] = row
        print(json.dumps({path.name: {k: v for k, v in row.items() if k != "profiles"}}), file=sys.stderr, flush=True)
        session.close()
    print(json.dumps(results, indent=1))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prepare", "check", "bench"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="cuda:sm_90")
    parser.add_argument("--only", default="", help="plans whose names contain this")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.folder, options.target)
        return 0
    return check(options.folder) if options.what == "check" else bench(options.folder, options.only)


if __name__ == "__main__":
    sys.exit(main())
