"""The bytes behind each token, and where a prompt may be cut so that it ends on a token boundary.

A prompt that ends in the middle of what the tokenizer would have written as one token (after a newline, inside an
indent, inside a word) is a sequence that the model never saw in training. *Token healing* takes the last pre-token
away again and obliges the first generated tokens to spell the bytes that were taken.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_METASPACE = "\u2581"
_CACHE: WeakKeyDictionary[Any, TokenText] = WeakKeyDictionary()


def _byte_alphabet() -> dict[str, int]:
    """Printable stand-ins of byte-level BPE to bytes; the table of GPT-2 (Radford et al., 2019)."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    table = {chr(byte): byte for byte in kept}
    others = [byte for byte in range(256) if byte not in set(kept)]
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def as_trained(text: str) -> str:
    """A text as training text was read: without a byte order mark, with `\\n` line ends."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _mentions(component: object, name: str) -> bool:
    return component is not None and name in repr(component)


@dataclass(frozen=True)
class HealedPrompt:
    """A prompt cut back to a token boundary.

    Args:
        token_ids: what the model is given.
        pending: UTF-8 bytes of the prompt that the first generated tokens have to spell; empty when nothing was cut.
        removed_tokens: how many tokens of the prompt were taken away.
    """

    token_ids: list[int]
    pending: bytes
    removed_tokens: int


class TokenText:
    """Bytes of every token of one tokenizer, with the look-ups that healing needs.

    Byte-level BPE and SentencePiece-like vocabularies are understood exactly. Of any other, a token's bytes are what
    `tokenizer.decode` gives for it alone.

    Args:
        tokenizer: any fast Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = getattr(backend, "decoder", None)
        byte_level = _mentions(decoder, "ByteLevel") or _mentions(getattr(backend, "pre_tokenizer", None), "ByteLevel")
        metaspace = not byte_level and _mentions(decoder, _METASPACE)
        self.special_ids = frozenset(
            {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
            | {index for index in tokenizer.all_special_ids if index is not None}
        )
        alphabet = _byte_alphabet()
        self._bytes: list[bytes] = []
        for index in range(len(tokenizer)):
            token: str = "" if index in self.special_ids else str(tokenizer.convert_ids_to_tokens(index) or "")
            if byte_level and all(letter in alphabet for letter in token):
                text = bytes(alphabet[letter] for letter in token)
            elif metaspace and len(token) == 6 and token.startswith("<0x"):
                text = bytes.fromhex(token[3:5])
            elif metaspace or byte_level:  # of a byte-level vocabulary: tokens added as plain text
                text = (token.replace(_METASPACE, " ") if metaspace else token).encode()
            else:
                text = str(tokenizer.decode([index])).encode() if token else b""
            self._bytes.append(text)
        self._by_bytes: dict[bytes, list[int]] = {}
        for index, text in enumerate(self._bytes):
            if text:
                self._by_bytes.setdefault(text, []).append(index)
        self._sorted = sorted(self._by_bytes)
        self._pre_tokenizer = getattr(backend, "pre_tokenizer", None)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TokenText:
        """The table of a tokenizer, built once and kept as long as the tokenizer lives."""
        table = _CACHE.get(tokenizer)
        if table is None or len(table._bytes) != len(tokenizer):
            table = _CACHE[tokenizer] = cls(tokenizer)
        return table

    def __len__(self) -> int:
        return len(self._bytes)

    def bytes_of(self, token_id: int) -> bytes:
        """UTF-8 bytes (perhaps part of a character) that the token adds; empty for special or unknown tokens."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def join(self, token_ids: Iterable[int]) -> bytes:
        """Bytes of a sequence of tokens."""
        return b"".join(self.bytes_of(index) for index in token_ids)

    def spelling(self, pending: bytes) -> list[int]:
        """Tokens that may come next when `pending` has to be spelt: its prefixes, and whatever starts with it."""
        allowed = [index for end in range(1, len(pending)) for index in self._by_bytes.get(pending[:end], ())]
        start = bisect_left(self._sorted, pending)
        for text in self._sorted[start:]:
            if not text.startswith(pending):
                break
            allowed += self._by_bytes[text]
        return allowed

    def heal(self, text: str, token_ids: list[int]) -> HealedPrompt:
        """Cuts the tokens of the last pre-token off a prompt.

        Nothing is cut where the vocabulary cannot spell the bytes one by one, or where tokens and text do not line
        up (a normalising tokenizer).

        Args:
            text: the prompt.
            token_ids: the tokens of the prompt, without special tokens after it.
        """
        untouched = HealedPrompt(token_ids, b"", 0)
        if not text or not token_ids:
            return untouched
        wanted = max(1, len(self._last_pre_token(text).encode()))
        cut, tail = len(token_ids), b""
        while cut > 0 and len(tail) < wanted and token_ids[cut - 1] not in self.special_ids:
            cut -= 1
            tail = self.bytes_of(token_ids[cut]) + tail
        # A token in front may be half of a character: the whole character has to go.
        while cut > 0 and tail and 0x80 <= tail[0] < 0xC0 and token_ids[cut - 1] not in self.special_ids:
            cut -= 1
            tail = self.bytes_of(token_ids[cut]) + tail
        spellable = all(bytes([byte]) in self._by_bytes for byte in tail)
        if not tail or not spellable or not text.encode().endswith(tail):
            return untouched
        return HealedPrompt(token_ids[:cut], tail, len(token_ids) - cut)

    def _last_pre_token(self, text: str) -> str:
        """The last piece that the pre-tokenizer makes of the last few lines."""
        tail = text[-256:]
        if self._pre_tokenizer is not None:
            pieces = self._pre_tokenizer.pre_tokenize_str(tail)
            if pieces:
                start, end = pieces[-1][1]
                if end <= len(tail) and end - start < 64:
                    return str(tail[start:])
        return tail[-1:]
