"""Running an artifact needs neither torch nor transformers nor a compiler: the runtime must not import them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COMPILE_ONLY = (
    "torch",
    "transformers",
    "triton",
    "safetensors",
    "huggingface_hub",
    "ziglang",
    "gguf",
    "llmc.compiler",
    "llmc.passes",
    "llmc.codegen",
    "llmc.quant",
    "llmc.pipeline",
)
PROGRAMS = {
    "import": "import llmc",
    "load": "import llmc; llmc.load",
    "engine": "import llmc.runtime.engine, llmc.runtime.api, llmc.runtime.tokenizer, llmc.runtime.chat_template",
    "generate": "import llmc; m = llmc.load(sys.argv[1], kv_cache='1MiB'); m.generate([5, 6], max_tokens=3); m.logits([[5, 6]]); m.close()",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_runtime_imports_nothing_of_the_compiler(name, tiny):
    program = f"import sys, json; {PROGRAMS[name]}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program, str(tiny)], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "llmc" in loaded
    assert not [m for m in loaded if m in COMPILE_ONLY or m.startswith(tuple(f"{c}." for c in COMPILE_ONLY))]


def test_the_package_names_what_it_has():
    import llmc

    assert all(getattr(llmc, name) for name in llmc.__all__)
    with pytest.raises(AttributeError, match="compil_"):
        _ = llmc.compil_
