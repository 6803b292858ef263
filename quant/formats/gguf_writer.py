"""Writing GGUF: the names and facts with which transformers reads a model's GGUF files, turned round."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...errors import UnsupportedError
from ..algorithms.rtn import Codes
from ..scheme import Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...compiler.checkpoint import Checkpoint

BLOCK = 32
# How the tokenizers of well-known vocabularies split text, by the pattern or the step that only they have.
PRE_TOKENIZERS = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}": "llama-bpe",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|": "qwen2",
    '"Digits"': "smollm",
}


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    plain: Mapping[str, torch.Tensor],
    quantized: Mapping[str, tuple[Scheme, Codes]],
) -> int:
    """Write one file; returns the number of tensors. Weights have the names of transformers' checkpoints.

    Blocks are Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and MXFP4; a larger group becomes several blocks with one scale. Raises
    UnsupportedError for a model whose GGUF form transformers does not know as plain renaming, and for other schemes.
    """
    import gguf

    form = _Form(checkpoint, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), form.architecture)
    form.add_facts(writer)
    _add_tokenizer(writer, checkpoint, form.config.vocab_size)
    blocks: dict[str, tuple[str, list[torch.Tensor]]] = {}
    for name, (scheme, codes) in quantized.items():
        kind, rows = _blocks(scheme, form.arranged(name, codes), name)
        blocks.setdefault(form.name(name), (kind, []))[1].append(rows)
        if blocks[form.name(name)][0] != kind:
            raise UnsupportedError(f"the experts of {form.name(name)} have several schemes", "give them one")
    count = 0
    for target, (kind, parts) in blocks.items():
        data = parts[0] if len(parts) == 1 else torch.stack(parts)
        writer.add_tensor(target, data.numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
        count += 1
    floats: dict[str, list[torch.Tensor]] = {}
    for name, tensor in plain.items():
        if form.tied(name):
            continue
        floats.setdefault(form.name(name), []).append(form.arranged_values(name, tensor))
    for target, parts in floats.items():
        data = parts[0] if len(parts) == 1 else torch.stack(parts)
        if data.dtype == torch.bfloat16 and data.ndim > 1:
            raw = data.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(
                target, (data if data.dtype == torch.float16 and data.ndim > 1 else data.float()).contiguous().numpy()
            )
        count += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


class _Form:
    """One model's GGUF form: its architecture's name, the tensors' names and order of rows, and its facts."""

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel) -> None:
        import gguf
        from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS

        config = model.config
        kind = str(config.model_type).removesuffix("_text")
        self.config, self._facts = config, GGUF_CONFIG_MAPPING.get(kind)
        names = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
        spelled = [kind, kind.replace("_", ""), kind.replace("_", "-")]
        if "rope.dimension_count" in (self._facts or {}) and (self._facts or {})["rope.dimension_count"] == "head_dim":
            spelled = ["llama"]  # whatever lies as llama does is called so
        self.architecture = next((n for n in spelled if n in names), "")
        processor = TENSOR_PROCESSORS.get(self.architecture)
        self._processor = processor.__name__ if processor is not None else ""
        if self._facts is None or not self.architecture or self._processor not in ("", "LlamaTensorProcessor", "Gemma2TensorProcessor", "Qwen2MoeTensorProcessor"):  # fmt: skip
            raise UnsupportedError(
                f"{config.model_type} models cannot be written as GGUF",
                "known are those that transformers reads from GGUF by renaming: llama, mistral, qwen2, qwen3, qwen3_moe, gemma2, gemma3, phi3",
            )
        self._names = gguf.get_tensor_name_map(names[self.architecture], config.num_hidden_layers)

    def name(self, hub: str) -> str:
        """The GGUF name of a tensor; experts of one layer share theirs."""
        parts = hub.split(".")
        if "experts" in parts and parts[parts.index("experts") + 1].isdigit():
            del parts[parts.index("experts") + 1]
        found = self._names.get_name(".".join(parts), try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UnsupportedError(f"GGUF has no name for {hub} in {self.architecture} models", "use another --format")
        return str(found)

    def tied(self, hub: str) -> bool:
        return hub.startswith("lm_head.") and bool(self.config.tie_word_embeddings)

    def arranged(self, hub: str, codes: Codes) -> Codes:
        """Rows in the order in which llama.cpp's rotary embedding wants them."""
        order = self._order(hub, codes.codes.shape[0])
        if order is None:
            return codes
        zeros = codes.zeros[order] if codes.zeros is not None else None
        return Codes(codes.codes[order], codes.scales[order], zeros)

    def arranged_values(self, hub: str, tensor: torch.Tensor) -> torch.Tensor:
        if self._processor == "Gemma2TensorProcessor" and hub.endswith("norm.weight"):
            return tensor.float() + 1
        order = self._order(hub, tensor.shape[0])
        return tensor if order is None else tensor[order]

    def _order(self, hub: str, rows: int) -> torch.Tensor | None:
        if self._processor != "LlamaTensorProcessor":
            return None
        target = self.name(hub)
        heads = self.config.num_attention_heads if ".attn_q." in target else self.config.num_key_value_heads
        if ".attn_q." not in target and ".attn_k." not in target:
            return None
        return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).flatten()

    def add_facts(self, writer: Any) -> None:
        """Every fact that transformers reads, and those that llama.cpp asks for besides."""
        config = self.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rope = getattr(config, "rope_parameters", None) or {}
        rope = rope.get("full_attention", rope)
        facts: dict[str, Any] = {}
        for key, attribute in (self._facts or {}).items():
            value = (
                rope.get("rope_theta") if attribute == "rope_theta" else getattr(config, attribute, None) if attribute else None
            )
            if isinstance(value, bool | int | float):
                facts[key] = value
        facts |= {"attention.key_length": head, "attention.value_length": head, "rope.dimension_count": head}
        for key, attribute in (
            ("expert_feed_forward_length", "moe_intermediate_size"),
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ):
            if getattr(config, attribute, None) is not None:
                facts[key] = getattr(config, attribute)
        scaling = str(rope.get("rope_type", "default"))
        if scaling in ("linear", "yarn"):
            facts |= {"rope.scaling.factor": float(rope["factor"])}
            writer.add_string(f"{self.architecture}.rope.scaling.type", scaling)
            if "original_max_position_embeddings" in rope:
                facts["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
        elif scaling == "llama3":
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
            base = 1.0 / rope["rope_theta"] ** (torch.arange(0, head, 2).float() / head)
            writer.add_tensor("rope_freqs.weight", (base / scaled).float().numpy())
        elif scaling != "default":
            raise UnsupportedError(f"{scaling} rope cannot be written as GGUF", "use another --format")
        for key, value in facts.items():
            whole = isinstance(value, int) and not key.startswith(("rope.freq", "attention.layer_norm", "attn_", "final_"))
            (writer.add_uint32 if whole else writer.add_float32)(f"{self.architecture}.{key}", value)


def _blocks(scheme: Scheme, codes: Codes, name: str) -> tuple[str, torch.Tensor]:
    """The type, and the bytes [N, ·] of a weight's blocks."""
    n, k = codes.codes.shape
    size = scheme.group or k
    if k % BLOCK or size % BLOCK:
        raise UnsupportedError(
            f"{name} with {k} inputs does not fill blocks of {BLOCK}", f"leave it out with --scheme '{name}=bf16'"
        )
    groups = codes.codes.reshape(n, k // BLOCK, BLOCK).to(torch.uint8)
    spread = lambda t: t.repeat_interleave(size // BLOCK, 1)[:, : k // BLOCK]  # noqa: E731
    scale = _half(spread(codes.scales))
    halves = lambda t: (t[..., :16] & 15) | ((t[..., 16:] & 15) << 4)  # noqa: E731
    if scheme.kind == "mxfp4":
        exponent = (torch.log2(spread(codes.scales).clamp(min=2.0**-127)).round() + 127).clamp(0, 254).to(torch.uint8)
        return "MXFP4", torch.cat([exponent[..., None], halves(groups)], -1).flatten(1)
    zeros = codes.zeros
    head = [scale]
    if zeros is not None:
        head.append(_half(spread(-zeros * codes.scales)))
    if scheme.kind == "int4":
        return "Q4_0" if zeros is None else "Q4_1", torch.cat([*head, halves(groups)], -1).flatten(1)
    if scheme.kind == "int5":
        high = (
            ((groups >> 4) << torch.tensor([0, 1, 2, 3, 4, 5, 6, 7], dtype=torch.uint8).repeat(4))
            .reshape(n, -1, 4, 8)
            .sum(-1)
            .to(torch.uint8)
        )
        return "Q5_0" if zeros is None else "Q5_1", torch.cat([*head, high, halves(groups)], -1).flatten(1)
    if scheme.kind == "int8" and zeros is None:
        return "Q8_0", torch.cat([scale, groups ^ 128], -1).flatten(1)
    raise UnsupportedError(f"GGUF has no blocks for {scheme}", "use int4, int5, int8 or mxfp4, in groups of 32 or more")


def _half(values: torch.Tensor) -> torch.Tensor:
    """[N, B] → float16 bytes [N, B, 2]."""
    return values.half().contiguous().view(torch.uint8).reshape(*values.shape, 2)


def _add_tokenizer(writer: Any, checkpoint: Checkpoint, vocabulary: int) -> None:
    """The tokenizer as llama.cpp reads it: byte-level BPE ("gpt2"), or BPE with spaces marked ("llama")."""
    raw = checkpoint.tokenizer_files.get("tokenizer.json")
    model = json.loads(raw).get("model", {}) if raw is not None else {}
    if raw is None or model.get("type") != "BPE":
        writer.add_tokenizer_model("none")
        return
    data = json.loads(raw)
    byte_level = not model.get("byte_fallback")
    added = {t["id"]: t for t in data.get("added_tokens", [])}
    by_id = {i: token for token, i in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    tokens, kinds = [], []
    for i in range(vocabulary):
        token = by_id.get(i)
        tokens.append(token if token is not None else f"[PAD{i}]")
        special = added.get(i)
        byte = token is not None and not byte_level and len(token) == 6 and token.startswith("<0x")
        kinds.append(5 if token is None else (3 if special["special"] else 4) if special is not None else 6 if byte else 1)
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    if byte_level:
        text = json.dumps(data.get("pre_tokenizer"), ensure_ascii=False)
        found = (
            name for mark, name in PRE_TOKENIZERS.items() if json.dumps(mark, ensure_ascii=False)[1:-1] in text or mark in text
        )
        writer.add_tokenizer_pre(next(found, "default"))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if not byte_level:
        writer.add_token_scores([-float(i) for i in range(vocabulary)])
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if byte_level and merges:
        writer.add_token_merges(merges)
    settings = json.loads(checkpoint.tokenizer_files.get("tokenizer_config.json", b"{}"))
    ids = {token: i for i, token in by_id.items()}
    for key, add in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("pad_token", writer.add_pad_token_id),
        ("unk_token", writer.add_unk_token_id),
    ):
        token = settings.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            add(ids[token])
    if isinstance(settings.get("add_bos_token"), bool):
        writer.add_add_bos_token(settings["add_bos_token"])
    template = settings.get("chat_template") or checkpoint.tokenizer_files.get("chat_template.jinja", b"").decode()
    if isinstance(template, str) and template:
        writer.add_chat_template(template)
