"""Random weights in the shapes of models that people use, as GGUF files: what `make bench SHAPE=qwen2.5-0.5b` times.

`python -m benchmarks.shapes NAME OUT.gguf --tokenizer MODEL.gguf` writes one: bfloat16, drawn with a fixed seed by transformers' own initialisation,
with another model's tokenizer (no text is judged). Speed depends on shapes alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 32768, "rope_theta": 5e5,
        "tie_word_embeddings": True,
    },
    "olmoe-4-layers": {
        "model_type": "qwen3_moe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024, "moe_intermediate_size": 1024,
        "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128, "num_experts": 64,
        "num_experts_per_tok": 8, "max_position_embeddings": 32768, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Qwen2.5-0.5B, Llama-3.2-1B, and OLMoE-1B-7B cut from 16 layers to 4 (1.9 billion parameters, of which a token uses 0.47 billion), its norms of queries and keys those of Qwen3-MoE, which llama.cpp's format has."""


def write_checkpoint(name: str, folder: Path, tokenizer: str) -> None:
    """A Hugging Face checkpoint of the shape, in bfloat16, with the tokenizer of a GGUF file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    shape = dict(SHAPES[name])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    path = Path(tokenizer)
    AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(SHAPES))
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument("--tokenizer", required=True, metavar="MODEL.gguf", help="the GGUF file whose tokenizer it gets")
    options = parser.parse_args()
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        checkpoint, written = Path(work) / "checkpoint", Path(work) / "gguf"
        write_checkpoint(options.name, checkpoint, options.tokenizer)
        tool = str(Path(sys.executable).parent / "llmc")
        subprocess.run(
            [tool, "export", str(written), "--from", str(checkpoint), "--format", "gguf", "--quant", "bf16"], check=True
        )
        (written / "model.gguf").rename(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
