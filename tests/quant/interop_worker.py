"""Run by the interpreter that has the other tools: load FOLDER as FORM says, and write the logits of IDS to OUT (npy)."""

from __future__ import annotations

import json
import sys

import numpy as np


def main(form: str, folder: str, ids: str, out: str) -> None:
    tokens = json.loads(ids)
    if form == "gguf":
        from llama_cpp import Llama

        model = Llama(f"{folder}/model.gguf", logits_all=True, n_ctx=64, verbose=False, n_threads=2)
        model.eval(tokens)
        np.save(out, model.scores[: len(tokens)])
        return
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        np.save(out, model(torch.tensor([tokens])).logits[0].float().numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
