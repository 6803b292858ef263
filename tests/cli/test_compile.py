"""llmc compile: the report, the gates, recipes, dumps, and that the file appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from server import tiny

NATIVE = ("--target", "cpu:native")


def test_the_report(llmc, source, here):
    done = llmc("compile", source, "-o", "a.llmc", *NATIVE, "--json")
    value = done.json
    assert set(value) >= {"artifact", "bytes", "sha256", "targets", "quant", "conformance", "fallbacks", "seconds"}
    assert value["artifact"] == "a.llmc"
    data = (here / "a.llmc").read_bytes()
    assert (value["bytes"], value["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert set(value["conformance"]) == {"kl_mean", "kl_p99", "top1", "max_abs"}
    assert value["conformance"]["kl_mean"] < 1e-6
    assert value["conformance"]["top1"] == 1.0
    assert set(value["seconds"]) == {"capture", "passes", "quantize", "codegen", "package", "check"}
    assert value["fallbacks"] == []
    assert [t.startswith("cpu:") for t in value["targets"]] == [True]
    assert os.listdir(here) == ["a.llmc"]
    assert data == tiny.artifact().read_bytes()


def test_for_a_person(llmc, source, here):
    done = llmc("compile", source, "-o", "a.llmc", *NATIVE, "--quant", "int4")
    assert "a.llmc: " in done.out and "mean KL" in done.out and "int4" in done.out
    assert "Reading" in done.err
    assert (here / "a.llmc").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_two_compiles_give_the_same_bytes(llmc, source, tmp_path, monkeypatch):
    """In two processes' worth of state: other folders, another hash of strings, another time, no shared capture."""
    made = []
    for i, name in enumerate(("one", "two/deeper")):
        where = tmp_path / name
        where.mkdir(parents=True)
        env = {
            **os.environ,
            "PYTHONHASHSEED": str(i + 1),
            "XDG_CACHE_HOME": str(where / "cache"),
            "TZ": "Asia/Tokyo" if i else "UTC",
        }
        code = f"import sys; sys.argv = ['llmc', 'compile', {str(source)!r}, '-o', 'a.llmc', '--target', 'cpu:native', '--quant', 'int4', '--json']; from llmc.cli.main import main; main()"
        done = subprocess.run([sys.executable, "-c", code], cwd=where, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        made.append((where / "a.llmc").read_bytes())
    assert made[0] == made[1]


def test_an_existing_file_is_kept_unless_it_is_the_same_source_or_forced(llmc, fails, source, here):
    (here / "a.llmc").write_text("mine")
    assert "--force" in fails(2, "compile", source, "-o", "a.llmc", *NATIVE)
    assert (here / "a.llmc").read_text() == "mine"
    llmc("compile", source, "-o", "a.llmc", *NATIVE, "--force", "--weights", "none")
    llmc("compile", source, "-o", "a.llmc", *NATIVE, "--weights", "none")
    other = tiny.variant("other")
    tiny.save_model(other, seed=5)
    fails(2, "compile", other, "-o", "a.llmc", *NATIVE)


def test_a_gate_that_is_not_met_leaves_nothing(llmc, fails, source, here):
    message = fails(1, "compile", source, "-o", "a.llmc", *NATIVE, "--quant", "int4", "--max-kl", "1e-9")
    assert "GateFailed" in message and "1e-09" in message
    assert os.listdir(here) == []
    fails(1, "compile", source, "-o", "a.llmc", *NATIVE, "--weights", "none", "--max-kl", "1")
    assert os.listdir(here) == []
    assert (
        llmc("compile", source, "-o", "a.llmc", *NATIVE, "--quant", "int8", "--max-kl", "10", "--json").json["conformance"][
            "kl_mean"
        ]
        > 0
    )


def test_strict_refuses_fallbacks(fails, source, here, monkeypatch):
    from llmc.codegen.cpu import render

    real = render.render

    def with_fallback(*args, **kwargs):
        made = real(*args, **kwargs)
        made.lowered.fallbacks.append({"module": "model.layers.0", "op": "odd", "reason": "no kernel"})
        return made

    monkeypatch.setattr(render, "render", with_fallback)
    assert "model.layers.0" in fails(3, "compile", source, "-o", "a.llmc", *NATIVE, "--strict")
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device"), 5),
        (MemoryError(), 5),
        (RuntimeError("a bug"), 70),
    ],
)
@pytest.mark.parametrize("during", ["draft", "final", "weights"])
def test_an_interrupted_compile_leaves_nothing(llmc, source, here, monkeypatch, error, status, during):
    from llmc.codegen.weights import WeightPacker
    from llmc.runtime import artifact

    real, calls = artifact.write_archive, []

    def breaking(stream, members, comment):
        calls.append(1)
        if len(calls) < (2 if during == "final" else 1):
            return real(stream, members, comment)
        stream.write(b"half")
        raise error

    def broken_pack(self, spec):
        raise error

    if during == "weights":
        monkeypatch.setattr(WeightPacker, "pack", broken_pack)
    else:
        monkeypatch.setattr(artifact, "write_archive", breaking)
    value = llmc("compile", source, "-o", "a.llmc", *NATIVE, "--json", status=status).json
    assert value["exit"] == status
    assert os.listdir(here) == []


def test_ctrl_c_leaves_nothing_and_is_130(source, here):
    code = f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = ['llmc', 'compile', {str(source)!r}, '-o', 'a.llmc', '--target', 'cpu:native']; from llmc.cli.main import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stderr:
        if b"Capturing" in line:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err[-1000:]
    assert b"Traceback" not in err
    assert os.listdir(here) == []


def test_an_interrupt_that_a_library_swallows_is_raised_again(monkeypatch):
    from llmc.errors import Interrupts

    monkeypatch.setattr(signal, "signal", lambda number, handler: taken.append(handler))
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
    taken, interrupts = [], Interrupts()
    interrupts.install()
    interrupts.check()
    with contextlib.suppress(KeyboardInterrupt):
        taken[0](signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()


def test_a_plan_holds_no_weights(llmc, source, here):
    value = llmc("compile", source, "-o", "a.llmc", *NATIVE, "--weights", "none", "--json").json
    assert "skipped" in value["conformance"]
    assert llmc("inspect", "a.llmc", "--json").json["memory"]
    assert llmc("verify", "a.llmc", "--json").json["ok"]
    assert "weights" in llmc("generate", "a.llmc", "--prompt", "x", "--json", status=5).json["error"]["message"]


@pytest.mark.parametrize("options", [[], ["--quant", "int4", "--asymmetric"], ["--quant", "int8:channel/int8"]])
def test_a_plan_from_a_config_alone_says_what_the_weights_will_take(llmc, source, here, options):
    (here / "plan").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (here / "plan" / name).write_bytes((source / name).read_bytes())
    assert llmc("compile", "plan", "-o", "no.llmc", *NATIVE, *options, "--json", status=4).json["error"]
    llmc("compile", "plan", "-o", "plan.llmc", *NATIVE, *options, "--weights", "none", "--json")
    llmc("compile", source, "-o", "whole.llmc", *NATIVE, *options, "--json")
    from llmc.runtime.artifact import open_artifact

    with open_artifact(here / "plan.llmc") as plan, open_artifact(here / "whole.llmc") as whole:
        assert plan.manifest["memory_plan"] == whole.manifest["memory_plan"]
        assert plan.manifest["memory_plan"]["weight_bytes"] == sum(n for _, n in whole.manifest["weights"])


def test_another_level_is_compiled_but_not_run(llmc, source, here):
    from llmc.runtime.cpu_info import available_levels

    other = "aarch64" if "x86-64-v3" in available_levels() else "x86-64-v3"
    value = llmc("compile", source, "-o", "a.llmc", "--target", f"cpu:{other}", "--json").json
    assert value["targets"] == [f"cpu:{other}"]
    assert other in value["conformance"]["skipped"]
    for command in (["generate", "a.llmc", "--prompt", "x"], ["eval", "a.llmc", "--text", __file__]):
        assert other in llmc(*command, "--json", status=5).json["error"]["message"]


@pytest.mark.parametrize(
    "args", [["--isa", "x86-64-v3"], ["--isa", "aarch64"], ["--target", "cuda:sm_90"], ["--target", "cpu:aarch64"]]
)
def test_a_level_that_is_not_there_is_5(fails, artifact, args):
    from llmc.runtime.artifact import open_artifact

    with open_artifact(artifact) as opened:
        held = {t["isa"] for t in opened.manifest["targets"]}
    if args[1].removeprefix("cpu:") in held:
        pytest.skip("this machine's own level")
    for command in (
        ["generate", artifact, "--prompt", "x"],
        ["eval", artifact, "--text", __file__],
        ["run", artifact, "--port", "0"],
        ["bench", artifact],
        ["chat", artifact],
    ):
        fails(5, *command, *args)


def test_the_schemes_reach_the_file(llmc, source, here):
    args = (
        "--quant",
        "int4:g32",
        "--scheme",
        "model.layers.*.mlp.*=int8",
        "--scheme",
        "model.layers.1.mlp.down_proj=f32",
        "--kv-dtype",
        "int8",
        "--context",
        "64",
    )
    value = llmc("compile", source, "-o", "a.llmc", *NATIVE, *args, "--json").json
    shown = llmc("inspect", "a.llmc", "--json").json
    assert shown["quant"] == value["quant"]
    schemes = set(value["quant"].values())
    assert any(s.startswith("int4:g32") for s in schemes) and any(s.startswith("int8:channel") for s in schemes)
    assert shown["model"]["context"] == 64 and shown["model"]["kv_dtype"] == "int8"
    assert value["quant"]["lm_head"].startswith("int8:channel")
    assert "64" in llmc("generate", "a.llmc", "--input-ids", ",".join(["5"] * 64), "--json", status=2).json["error"]["message"]


# --- recipes -----------------------------------------------------------------------------------------------------------


def test_a_recipe_is_relative_to_its_folder_and_the_command_line_wins(llmc, source, here, tmp_path):
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "model").symlink_to(source)
    (recipes / "r.yaml").write_text(
        "source: model\nout: made.llmc\nquant: int4\ntarget: cpu:native\ncontext: 128\nscheme: ['lm_head=f32']\ndump_ir: ir\n"
    )
    value = llmc("compile", "--recipe", recipes / "r.yaml", "--json").json
    assert value["artifact"] == str(recipes / "made.llmc")
    assert value["quant"]["lm_head"].startswith("f32")
    assert any(s.startswith("int4") for s in value["quant"].values())
    assert list((recipes / "ir").iterdir()) and not list(here.iterdir())
    shown = llmc("inspect", recipes / "made.llmc", "--json").json
    assert shown["model"]["context"] == 128
    over = llmc("compile", "--recipe", recipes / "r.yaml", "-o", "mine.llmc", "--quant", "int8", "--context", "64", "--json").json
    assert over["artifact"] == "mine.llmc" and (here / "mine.llmc").exists()
    assert not any(s.startswith("int4") for s in over["quant"].values())
    assert llmc("inspect", "mine.llmc", "--json").json["model"]["context"] == 64


@pytest.mark.parametrize(
    ("text", "status", "word"),
    [
        ("quant: [int4", 4, "YAML"), ("- quant\n", 4, "mapping"), ("", 4, "mapping"), ("quant: 4\n", 4, "quant"), ("context: many\n", 4, "context"), ("strict: 1\n", 4, "strict"), ("target: 3\n", 4, "target"), ("max_kl: low\n", 4, "max_kl"),
        ("qant: int4\n", 2, "quant"), ("kv-dtype: f32\n", 2, "kv_dtype"), ("1: x\n", 2, "1"), ("quant: int44\n", 2, "int4"), ("context: -3\n", 4, "context"), ("a: !!python/object/apply:os.system ['touch pwned']\n", 4, "YAML"),
    ],
)  # fmt: skip
def test_a_wrong_recipe(fails, source, here, text, status, word):
    (here / "r.yaml").write_text(text)
    assert word in fails(status, "compile", source, "-o", "a.llmc", "--recipe", "r.yaml", *NATIVE)
    assert os.listdir(here) == ["r.yaml"]


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"quant: \x00"])
def test_a_recipe_that_is_no_text(fails, source, here, data):
    (here / "r.yaml").write_bytes(data)
    fails(4, "compile", source, "-o", "a.llmc", "--recipe", "r.yaml", *NATIVE)


def test_a_recipe_that_is_not_there(fails, source):
    fails(4, "compile", source, "-o", "a.llmc", "--recipe", "no.yaml")


# --- dumps ---------------------------------------------------------------------------------------------------------------


def test_dump_ir_writes_one_file_a_pass_and_opt_gives_the_same(llmc, source, here):
    """Each dumped file follows from the one before by its pass, run by `llmc opt` (but for the passes that look at buffers)."""
    llmc("compile", source, "-o", "a.llmc", *NATIVE, "--quant", "int4", "--dump-ir", "ir", "--json")
    files = sorted((here / "ir").iterdir())
    assert files[0].name == "00-import.ir"
    assert [int(f.name[:2]) for f in files] == list(range(len(files)))
    checked = 0
    for before, after in itertools.pairwise(files):
        name = after.stem[3:]
        if name.startswith("raise"):
            continue
        passes = name if name != "quantize" else "quantize{scheme=int4}"
        assert llmc("opt", before, "--passes", passes).out == after.read_text(), name
        checked += 1
    assert checked >= 8
    quantized = next(i for i, f in enumerate(files) if f.stem.endswith("quantize"))
    several = ",".join(f.stem[3:] for f in files[quantized + 1 :])
    assert llmc("opt", files[quantized], "--passes", several).out == files[-1].read_text()


@pytest.mark.parametrize("text", ["", "nonsense", "func @", "\xff", "%0 = add(%1, %2)\n"])
def test_opt_of_what_is_no_ir_is_4(fails, here, text):
    (here / "x.ir").write_text(text)
    fails(4, "opt", "x.ir", "--passes", "simplify")


def test_opt_reads_standard_input(llmc, source, here, monkeypatch):
    import io

    llmc("compile", source, "-o", "a.llmc", *NATIVE, "--weights", "none", "--dump-ir", "ir", "--json")
    first = here / "ir" / "00-import.ir"
    monkeypatch.setattr(sys, "stdin", io.StringIO(first.read_text()))
    assert llmc("opt", "-", "--passes", "widen").out == llmc("opt", first, "--passes", "widen").out
