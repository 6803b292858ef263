"""Checkpoints: a Hugging Face folder, a hub id or a GGUF file, read lazily, one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, EnvironmentLacks, UnsupportedError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
POSITIVE = (
    "hidden_size",
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class StoredCache:
    """The key/value cache that a quantized checkpoint asks for: a dtype, and the steps of keys and values by module where fixed."""

    kind: str
    scales: dict[str, tuple[float, float]]


@dataclass
class Checkpoint:
    """A model's configuration, its tensors by the names that its files use, and its tokenizer files.

    `readers` maps each name to a function that reads that tensor; nothing is read before it is asked for.
    `bind(model)` gives the values by transformers' parameter names instead. `quantization` is what config.json says of the tool
    that quantized it, `metadata` the files' own; `stored` reads the codes of quantized weights (quant/formats), `cache` is the cache it was made for.
    """

    source: str
    config: PretrainedConfig
    dtype: str
    readers: dict[str, Callable[[], torch.Tensor]]
    files: tuple[Path, ...]
    tokenizer_files: dict[str, bytes] = field(default_factory=dict)
    gguf_architecture: str = ""
    quantization: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    stored: dict[str, Callable[[], Any]] = field(default_factory=dict)
    cache: StoredCache | None = None

    @cached_property
    def sha256(self) -> str:
        """Hash of every file that the compile reads, by name and content."""
        digest = hashlib.sha256()
        for path in sorted(self.files, key=lambda p: p.name):
            inner = hashlib.sha256()
            with path.open("rb") as stream:
                while block := stream.read(1 << 22):
                    inner.update(block)
            digest.update(f"{path.name}\0{inner.hexdigest()}\n".encode())
        return digest.hexdigest()

    def read(self, name: str) -> torch.Tensor:
        """The tensor of that name; raises CheckpointError when it is missing or cannot be read."""
        if name not in self.readers:
            raise CheckpointError(
                f"{self.source} has no tensor {name!r}",
                "the checkpoint is incomplete, or its config.json names another architecture",
            )
        try:
            return self.readers[name]()
        except CheckpointError:
            raise
        except Exception as error:  # the readers belong to other libraries: whatever they raise, this tensor is unreadable
            raise CheckpointError(f"{self.source}: tensor {name!r} cannot be read: {error}") from error

    def bind(self, model: PreTrainedModel) -> BoundWeights:
        """The values by the parameter names of `model` (on the meta device), through transformers' own conversions."""
        return _bind_gguf(self, model) if self.gguf_architecture else _bind_folder(self, model)


class BoundWeights:
    """Parameter values by module name: `weights("model.norm.weight")`. Each call reads from disk; nothing is kept."""

    def __init__(
        self,
        source: str,
        readers: dict[str, Callable[[], torch.Tensor]],
        shapes: dict[str, tuple[int, ...]],
        tied: dict[str, str],
    ) -> None:
        self._source, self._readers, self._shapes, self._tied = source, readers, shapes, tied

    def __call__(self, name: str) -> torch.Tensor:
        key = self.stored_name(name)
        tensor = self._readers[key]()
        expected = self._shapes.get(name)
        if expected is not None and tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"{self._source}: {name} has shape {list(tensor.shape)}, the config asks for {list(expected)}",
                "config.json and the weights do not belong together",
            )
        return tensor

    def unused(self, ignored: Iterable[str] = ()) -> list[str]:
        """What the files hold and no parameter takes, by the name that it would have; `ignored` are patterns of names that may."""
        names = {n for n in self._readers if n not in self._shapes and not n.endswith("inv_freq")}
        return sorted(n for n in names if not any(re.search(p, n) for p in ignored))

    def stored_name(self, name: str) -> str:
        """The module name under which the value is stored: `name` itself, or that of a weight tied to it."""
        if name in self._readers:
            return name
        for other in self._tied_group(name):
            if other in self._readers:
                return other
        raise CheckpointError(
            f"{self._source} has no weight for {name}",
            "the checkpoint is incomplete, or its config.json names another architecture",
        )

    def _tied_group(self, name: str) -> list[str]:
        root = self._tied.get(name, name)
        return [root, *(k for k, v in self._tied.items() if v == root)]


def open_checkpoint(source: str, *, trust_remote_code: bool = False, weights: bool = True) -> Checkpoint:
    """Open SRC: a folder, a `.gguf` file or a hub id; `weights=False` is content with a config alone. Raises CheckpointError or EnvironmentLacks."""
    path = Path(source)
    if path.is_file():
        if path.suffix == ".gguf" or _starts_with(path, b"GGUF"):
            return _open_gguf(path)
        raise CheckpointError(f"{source} is a file, but not GGUF", "give the folder that holds config.json, or a .gguf file")
    if path.is_dir():
        return _open_folder(path, source, trust_remote_code, weights)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith((".", "/")):
        return _open_folder(_download(source, weights), source, trust_remote_code, weights)
    raise CheckpointError(
        f"{source} does not exist", "give a folder with config.json, a .gguf file, or a hub id such as org/model"
    )


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _download(repo: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.jinja", "tokenizer*", "*.model", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo}: no such folder here, and no such model on the hub",
            "check the name; for a gated model log in with `hf auth login`",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise EnvironmentLacks(
            f"{repo} is not a local folder, and the model hub cannot be reached",
            "check the network, or download the model elsewhere and give its folder",
        ) from error
    except Exception as error:  # huggingface_hub's HTTP client raises classes of its own when it is offline
        raise EnvironmentLacks(
            f"{repo} is not a local folder, and the model hub cannot be reached: {error}",
            "check the network, or download the model elsewhere and give its folder",
        ) from error


# --- folders ---------------------------------------------------------------------------------------------------------


def _open_folder(path: Path, source: str, trust_remote_code: bool, weights: bool) -> Checkpoint:
    import torch

    raw = _read_json(path / "config.json", source)
    _refuse_remote_code(raw, source, trust_remote_code)
    config = _load_config(path, source, trust_remote_code)
    metadata: dict[str, str] = {}
    readers, files = _weight_readers(path, source, metadata, weights)
    declared = getattr(config, "dtype", None) or _most_common_dtype(readers)
    names = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
    dtype = names.get(declared if isinstance(declared, torch.dtype) else getattr(torch, str(declared), torch.float32), "f32")
    tokenizer = _folder_tokenizer(path)
    extra = [path / "config.json", *(path / n for n in tokenizer if (path / n).exists())]
    quantization = _quantization(path, raw, source)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # transformers would look for the tool that made it
    return Checkpoint(source, config, dtype, readers, (*files, *extra), tokenizer, quantization=quantization, metadata=metadata)


def _quantization(path: Path, raw: dict[str, Any], source: str) -> dict[str, Any]:
    """What config.json, or AutoGPTQ's and AutoAWQ's own files, say of a quantized checkpoint; empty for another."""
    for holder in (raw, raw.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            if isinstance(holder, dict) and isinstance(holder.get(key), dict):
                return dict(holder[key])
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (path / name).exists():
            return {"quant_method": method, **_read_json(path / name, source)}
    return {}


def _read_json(path: Path, source: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{source} has no {path.name}", "is this the folder of a Hugging Face checkpoint?") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def _refuse_remote_code(raw: dict[str, Any], source: str, trusted: bool) -> None:
    if "auto_map" in raw and not trusted:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if raw.get("model_type") not in CONFIG_MAPPING_NAMES:
            raise UnsupportedError(
                f"{source} brings its own Python code (auto_map in config.json)",
                "read that code; then --trust-remote-code runs it at compile time",
            )


def _load_config(path: Path, source: str, trusted: bool) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=trusted, local_files_only=True)
    except Exception as error:  # whatever transformers objects to, the configuration cannot be used
        first = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{source}: config.json is not usable: {first}") from error
    text = config.get_text_config()
    for name in POSITIVE:
        value = getattr(text, name, None)
        if isinstance(value, int) and value < 1:
            raise CheckpointError(f"{source}: config.json is not usable: {name} is {value}")
    heads, groups = (getattr(text, f"num_{n}_heads", None) for n in ("attention", "key_value"))
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise CheckpointError(f"{source}: config.json is not usable: {heads} query heads cannot share {groups} key heads")
    return config


def _weight_readers(
    path: Path, source: str, metadata: dict[str, str], required: bool
) -> tuple[dict[str, Callable[[], torch.Tensor]], list[Path]]:
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (path / index_name).exists():
            index = _read_json(path / index_name, source).get("weight_map")
            if not isinstance(index, dict) or not index:
                raise CheckpointError(f"{source}: {index_name} has no weight_map", "the file is damaged: fetch it again")
            files = sorted({path / Path(str(name)).name for name in index.values()})
            missing = [f.name for f in files if not f.exists()]
            if missing:
                raise CheckpointError(
                    f"{source}: {index_name} names {missing[0]}, which is not there", "the download is incomplete"
                )
            return _read_files(files, source, metadata), [*files, path / index_name]
    for pattern in ("model*.safetensors", "pytorch_model*.bin", "qmodel.pt", "*.safetensors", "*.bin", "*.pt"):
        files = sorted(path.glob(pattern))
        if files:
            return _read_files(files, source, metadata), files
    if not required:
        return {}, []
    raise CheckpointError(f"{source} holds no weights", "expected *.safetensors, pytorch_model*.bin, or a .gguf file")


def _read_files(files: list[Path], source: str, metadata: dict[str, str]) -> dict[str, Callable[[], torch.Tensor]]:
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            readers.update(_read_safetensors(file, source, metadata))
        else:
            readers.update(_read_pickle(file, source))
    return readers


def _read_safetensors(file: Path, source: str, metadata: dict[str, str]) -> dict[str, Callable[[], torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as handle:
            names = list(handle.keys())
            metadata.update(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{source}: {file.name} is not a whole safetensors file: {error}", "the file is truncated or corrupt: fetch it again"
        ) from error

    def reader(name: str) -> Callable[[], torch.Tensor]:
        def read() -> torch.Tensor:
            with safe_open(file, "pt") as handle:
                return handle.get_tensor(name)

        return read

    return {name: reader(name) for name in names}


def _read_pickle(file: Path, source: str) -> dict[str, Callable[[], torch.Tensor]]:
    import pickle

    import torch

    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(
            f"{source}: {file.name} holds a pickled object that is not weights{f' ({named[1]})' if named else ''}",
            "convert the checkpoint to safetensors where you trust it",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{source}: {file.name} is not a whole PyTorch file: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{source}: {file.name} holds no tensors by name")
    flat = {}
    for name, value in state.items():
        if isinstance(value, dict):  # a module's own state, as hqq saves it: facts that are no tensors become some
            flat.update({f"{name}.{key}": _as_tensor(fact) for key, fact in value.items()})
        elif isinstance(value, torch.Tensor):
            flat[str(name)] = value
    return {name: partial(_given, tensor) for name, tensor in flat.items()}


def _as_tensor(fact: Any) -> torch.Tensor:
    import torch

    if isinstance(fact, torch.Tensor):
        return fact
    if isinstance(fact, bool | int | float | list | tuple):
        return torch.tensor(fact)
    return torch.tensor(list(str(fact).encode()), dtype=torch.uint8)


def _given(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _most_common_dtype(readers: dict[str, Callable[[], torch.Tensor]]) -> torch.dtype:
    import torch

    name = next(iter(readers), None)
    if name is None:  # a configuration alone
        return torch.float32
    dtype = readers[name]().dtype
    return dtype if dtype.is_floating_point else torch.float32


def _folder_tokenizer(path: Path) -> dict[str, bytes]:
    found = {name: (path / name).read_bytes() for name in TOKENIZER_FILES if (path / name).exists()}
    if "tokenizer.json" not in found and any((path / n).exists() for n in ("tokenizer.model", "vocab.json", "spiece.model")):
        found = {**_converted_tokenizer(str(path)), **found}
    for name in found:
        if name.endswith(".json") and name != "tokenizer.json":
            _check_side_file(path, name, found[name])
    if "tokenizer.json" in found:
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_str(found["tokenizer.json"].decode())
        except Exception as error:  # the library raises bare Exception for a file that it does not understand
            raise CheckpointError(f"{path}: tokenizer.json is not usable: {error}", "fetch it again, or remove it") from error
    return found


GENERATION_NUMBERS = {
    "temperature": (0, math.inf),
    "top_p": (0, 1),
    "top_k": (0, math.inf),
    "min_p": (0, 1),
    "repetition_penalty": (0, math.inf),
}


def _check_side_file(path: Path, name: str, raw: bytes) -> None:
    """Raise CheckpointError for a file beside the weights that is no JSON object, or holds impossible generation defaults."""
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise CheckpointError(f"{path}: {name} is not valid JSON: {error}", "fetch it again, or remove it") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {name} is not a JSON object", "fetch it again, or remove it")
    if name != "generation_config.json":
        return
    for key, (low, high) in GENERATION_NUMBERS.items():
        given = value.get(key)
        if given is not None and (isinstance(given, bool) or not isinstance(given, int | float) or not low <= given <= high):
            raise CheckpointError(f"{path}: {name} has the impossible {key} {given!r}", "mend it, or remove it")


def _converted_tokenizer(source: str, **options: str) -> dict[str, bytes]:
    """The files that transformers writes for a tokenizer it can convert; empty when it cannot."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, **options)
    except Exception:  # no usable tokenizer: the artifact takes token ids only, and the report says so
        return {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {name: (Path(folder) / name).read_bytes() for name in TOKENIZER_FILES if (Path(folder) / name).exists()}


def _bind_folder(checkpoint: Checkpoint, model: PreTrainedModel) -> BoundWeights:
    """Group the files' names by the parameter they make up, as transformers' loader does, but read only on demand."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    state = model.state_dict()
    transforms = get_model_conversion_mapping(model) or []
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    groups: dict[str, list[tuple[str, str | None]]] = {}
    for name in sorted(checkpoint.readers, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if renamed not in state and pattern is None and name not in state:
            alias = _EXPERT.sub(
                lambda m: m[1] + _MIXTRAL[m[2]] + m[3], name
            )  # some quantizers name mixtral's experts as others do
            renamed, pattern = rename_source_key(alias, renamings, converters, model.base_model_prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = name, None
        groups.setdefault(renamed, []).append((name, pattern))
    readers: dict[str, Callable[[], Any]] = {}

    def convert(renamed: str, members: list[tuple[str, str | None]], wanted: str) -> Any:
        first_pattern = members[0][1]
        assert first_pattern is not None
        converter = deepcopy(by_pattern[first_pattern])
        for member, pattern in members:
            converter.add_tensor(renamed, member, str(pattern), checkpoint.read(member))  # type: ignore[arg-type]
        made = converter.convert(renamed, model=model, config=model.config)
        value = made[wanted]
        return value[0] if isinstance(value, list) else value

    for renamed, members in groups.items():
        pattern = members[0][1]
        if pattern is None:
            readers[renamed] = partial(checkpoint.read, members[0][0])
            continue
        targets = by_pattern[pattern].target_patterns
        outputs = [renamed.replace(targets[0], t) for t in targets] if len(targets) > 1 else [renamed]
        for output in outputs:
            readers[output] = partial(convert, renamed, members, output)
    from transformers.pytorch_utils import Conv1D

    for module_name, module in model.named_modules():  # holds its weight with K before N; tools that quantize it do not
        name = f"{module_name}.weight"
        if isinstance(module, Conv1D) and any(member in checkpoint.stored for member, _ in groups.get(name, [])):
            readers[name] = partial(_transposed, readers[name])
    return BoundWeights(checkpoint.source, readers, {k: tuple(v.shape) for k, v in state.items()}, _tied(model))


def _transposed(read: Callable[[], torch.Tensor]) -> torch.Tensor:
    return read().T.contiguous()


_EXPERT = re.compile(r"(\.experts\.\d+\.)(gate_proj|down_proj|up_proj)(\.weight)$")
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def _tied(model: PreTrainedModel) -> dict[str, str]:
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return dict(tied) if isinstance(tied, dict) else {}


# --- GGUF ------------------------------------------------------------------------------------------------------------


GGUF_FACTS = {
    "attention.key_length": "head_dim",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}


@contextmanager
def _shared(reader: Any) -> Iterator[None]:
    """Let transformers use a reader that exists: it opens the file anew for each question, and parsing it takes seconds."""
    import gguf

    original = gguf.GGUFReader
    gguf.GGUFReader = lambda *args, **kwargs: reader
    try:
        yield
    finally:
        gguf.GGUFReader = original


NEWER_TYPES = {42: ("Q2_0", 64, 18)}
"""Types of GGUF blocks that gguf-py does not know yet: name, values and bytes of one."""


def know_newer_types() -> None:
    """Tell gguf-py of the types in NEWER_TYPES."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    for number, (name, values, size) in NEWER_TYPES.items():
        if number not in kinds._value2member_map_:
            made = int.__new__(kinds, number)
            made._name_, made._value_ = name, number
            kinds._member_map_[name] = kinds._value2member_map_[number] = made
            gguf.GGML_QUANT_SIZES[made] = (values, size)


def _open_gguf(path: Path) -> Checkpoint:
    import gguf
    import torch
    from gguf import GGUFReader, dequantize
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    know_newer_types()
    try:
        reader = GGUFReader(path)
        with _shared(reader):
            parsed = load_gguf_checkpoint(str(path), return_tensors=False)
        config = AutoConfig.for_model(**parsed["config"])
        architecture = str(reader.fields["general.architecture"].contents())
    except (ValueError, KeyError, IndexError, OSError, OverflowError, TypeError) as error:
        raise CheckpointError(
            f"{path.name} is not a GGUF file that can be read: {error}",
            "the file is truncated or corrupt, or its architecture is not known to transformers",
        ) from error
    size = path.stat().st_size
    for tensor in reader.tensors:
        if tensor.data_offset + tensor.n_bytes > size:
            raise CheckpointError(
                f"{path.name} is truncated: tensor {tensor.name} ends at byte {tensor.data_offset + tensor.n_bytes} of {size}",
                "fetch the file again",
            )
    for key, name in GGUF_FACTS.items():  # what transformers leaves at its default
        fact = reader.fields.get(f"{architecture}.{key}")
        if fact is not None and hasattr(config, name) and name not in parsed["config"]:
            with suppress(AttributeError):  # some configurations compute it
                setattr(config, name, int(fact.contents()))
    config.tie_word_embeddings = all(t.name != "output.weight" for t in reader.tensors)

    def read(index: int) -> torch.Tensor:
        tensor = reader.tensors[index]
        return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())

    def blocks(index: int) -> tuple[str, torch.Tensor, tuple[int, ...]]:
        tensor = reader.tensors[index]
        size = gguf.GGML_QUANT_SIZES[tensor.tensor_type][1]
        shape = tuple(int(n) for n in reversed(tensor.shape))
        return tensor.tensor_type.name, torch.from_numpy(tensor.data.view("uint8").reshape(-1, size).copy()), shape

    readers: dict[str, Callable[[], torch.Tensor]] = {str(t.name): partial(read, i) for i, t in enumerate(reader.tensors)}
    with _shared(reader):
        tokenizer = _converted_tokenizer(str(path.parent), gguf_file=path.name)
    stored: dict[str, Callable[[], Any]] = {
        str(t.name): partial(blocks, i)
        for i, t in enumerate(reader.tensors)
        if t.tensor_type.name not in ("F32", "F16", "BF16", "F64")
    }
    return Checkpoint(str(path), config, "bf16", readers, (path,), tokenizer, architecture, stored=stored)


def _bind_gguf(checkpoint: Checkpoint, model: PreTrainedModel) -> BoundWeights:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(checkpoint.gguf_architecture, TensorProcessor)(config=model.config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    readers: dict[str, Callable[[], Any]] = {}
    groups: dict[str, list[str]] = {}
    for stored in checkpoint.readers:
        target = names.get(stored) or names.get(stored.removesuffix(".weight"))  # merged experts have no suffix
        if target is not None:
            groups.setdefault(target, []).append(stored)

    def read(target: str, members: list[str]) -> torch.Tensor:
        import numpy as np
        import torch

        parsed: dict[str, Any] = {"tensors": {}, "config": model.config.to_dict()}
        for stored in members:
            result = processor.process(
                weights=checkpoint.read(stored).numpy(), name=stored, tensor_key_mapping=names, parsed_parameters=parsed
            )
            if result.name is not None and names.get(result.name) == target:
                return torch.from_numpy(np.ascontiguousarray(result.weights))
        value = parsed["tensors"].get(target)
        if value is None:
            raise CheckpointError(f"{checkpoint.source}: no tensor makes up {target}")
        return value

    for target, members in groups.items():
        readers[target] = partial(read, target, members)
    return BoundWeights(checkpoint.source, readers, {k: tuple(v.shape) for k, v in model.state_dict().items()}, _tied(model))
