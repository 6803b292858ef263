"""The artifact's tokenizer: text to ids, and what it says about special tokens and chat."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError, RequestError
from .detokenizer import Detokenizer

if TYPE_CHECKING:
    from .artifact import Artifact

# How byte-level tokenizers write a byte: printable ones as themselves, the others from U+0100 on (GPT-2's encoder.py).
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(b for b in range(256) if b not in _PRINTABLE)
BYTES = {chr(b): bytes([b]) for b in _PRINTABLE} | {chr(256 + i): bytes([b]) for i, b in enumerate(_OTHERS)}
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class ArtifactTokenizer:
    """Reads the tokenizer files of an artifact on first use. `available` is false for an artifact that takes ids only."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.available = artifact.has("tokenizer/tokenizer.json")

    @cached_property
    def inner(self) -> Any:
        """The `tokenizers.Tokenizer`; raises RequestError when the artifact has none."""
        if not self.available:
            raise RequestError("this model has no tokenizer: give token ids", param="prompt")
        from tokenizers import Tokenizer

        try:
            made = Tokenizer.from_str(self._artifact.read("tokenizer/tokenizer.json").decode())
        except Exception as error:  # the library raises bare Exception for a file that it does not understand
            raise ArtifactError(f"{self._artifact.path.name}: its tokenizer cannot be read: {error}") from error
        made.no_truncation()
        made.no_padding()
        return made

    def _json(self, name: str) -> dict[str, Any]:
        if not self._artifact.has(f"tokenizer/{name}"):
            return {}
        try:
            value = json.loads(self._artifact.read(f"tokenizer/{name}"))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._json("tokenizer_config.json")

    @cached_property
    def generation(self) -> dict[str, Any]:
        """The generation defaults that came with the checkpoint."""
        return self._json("generation_config.json")

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(self.inner.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        return str(self.inner.decode(ids, skip_special_tokens=skip_special))

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to the text, in UTF-8: perhaps a part of a character; empty for an unknown id."""
        if not self.available:
            return b""
        text = self.inner.id_to_token(token)
        if text is None:
            return b""
        if token in self._added:
            return str(text).encode()
        if "ByteLevel" in self._decoders:
            return b"".join(BYTES.get(c, c.encode()) for c in text)
        if self._decoders & {"ByteFallback", "Metaspace", "Replace"}:
            byte = BYTE_TOKEN.fullmatch(text)
            return bytes([int(byte[1], 16)]) if byte else text.replace("\u2581", " ").encode()
        return str(self.inner.decode([token], skip_special_tokens=False)).encode()

    def token_text(self, token: int) -> str:
        r"""One token as text, for reports of log-probabilities; a part of a character as bytes:\xHH…, as OpenAI writes it."""
        raw = self.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)

    def characters(self, token: int) -> int:
        """How many characters begin in this token."""
        return sum((b & 0xC0) != 0x80 for b in self.token_bytes(token))

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.inner.get_added_tokens_decoder())

    @cached_property
    def _decoders(self) -> frozenset[str]:
        """The types of the tokenizer's decoder and of its parts."""
        decoder = self._json("tokenizer.json").get("decoder") or {}
        return frozenset(str(d.get("type")) for d in (decoder, *decoder.get("decoders", ())))

    def detokenizer(self, stop: tuple[str, ...] = ()) -> Detokenizer | None:
        return Detokenizer(self.inner, stop) if self.available else None

    @cached_property
    def bos_id(self) -> int | None:
        """The id that the tokenizer itself puts before a text, if it does."""
        ids = self.encode("") if self.available else []
        return ids[0] if ids and self.encode("a")[:1] == ids[:1] else None

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends a generation: the generation defaults', the config's, the tokenizer's."""
        found: set[int] = set()
        for value in (self.generation.get("eos_token_id"), self._artifact.manifest["model"].get("eos_token_id")):
            found.update([value] if isinstance(value, int) else [v for v in value or [] if isinstance(v, int)])
        name = self.config.get("eos_token")
        text = name.get("content") if isinstance(name, dict) else name
        if text and self.available:
            token = self.inner.token_to_id(text)
            if token is not None:
                found.add(int(token))
        return frozenset(found)

    @cached_property
    def chat_template(self) -> str | None:
        if self._artifact.has("tokenizer/chat_template.jinja"):
            return self._artifact.read("tokenizer/chat_template.jinja").decode()
        template = self.config.get("chat_template")
        if isinstance(template, list):
            template = next((t.get("template") for t in template if t.get("name") == "default"), None)
        return template if isinstance(template, str) else None

    def special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, … as text, for the chat template."""
        out = {}
        for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = self.config.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                out[key] = text
        return out
