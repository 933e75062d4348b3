"""GLM's tokenizer: sentencepiece between command tokens. Exact to both originals, which treat typed ones differently.

Exported models get this file with the text of the modules of hanmo that it imports.
Source: the recorded specification of GLM, section "Tokenizer (port)".
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from hanmo.tokenizers.sentencepiece import SentencePieceTokenizer

_COMMANDS = (
    *("<|endoftext|>", "[SEP]", "[CLS]", "[MASK]", "[UNUSED1]", "[UNUSED2]", "<|startofpiece|>", "<|endofpiece|>"),
    *("[sMASK]", "[gMASK]"),
)
_ROLES = {
    **{"eos_token": "<|endoftext|>", "unk_token": "[UNK]", "sep_token": "[SEP]"},
    **{"pad_token": "<|endoftext|>", "cls_token": "[CLS]", "mask_token": "[MASK]"},
}
_MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
# English spacing, tidied up after decoding, in this order
_TIDY: tuple[tuple[str, str], ...] = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


class GlmTokenizer(SentencePieceTokenizer):
    """A single text becomes ``[CLS]`` A ``<|endoftext|>``, a pair ``[CLS]`` A ``[SEP]`` B ``<|endoftext|>``.

    ``flavour`` is "port", as in transformers, or "original", as trained: ``[UNK]`` has an id of its own and decoding puts
    no spaces around command tokens. The original's variant for the 10B model (``fix_command_token`` False) has one id for
    ``[gMASK]`` and ``<|endofpiece|>``. ValueError for other flavours and variants.
    """

    vocab_files_names = {"vocab_file": "cog-pretrain.model"}
    truncation_side = "left"

    def __init__(self, vocab_file: str, flavour: str = "port", fix_command_token: bool = True, **kwargs: Any) -> None:
        if flavour not in ("port", "original"):
            raise ValueError(f"flavour is {flavour!r}; expected one of: port, original")
        if flavour == "port" and not fix_command_token:
            raise ValueError("fix_command_token=False is a variant of flavour='original' only")
        self.flavour, self.fix_command_token = flavour, fix_command_token
        kwargs.pop("additional_special_tokens", None)  # the format decides them
        kwargs["extra_special_tokens"] = ["<|startofpiece|>", "<|endofpiece|>", "[gMASK]", "[sMASK]"]
        super().__init__(vocab_file, **_ROLES | kwargs, flavour=flavour, fix_command_token=fix_command_token)
        self._split = re.compile("(" + "|".join(map(re.escape, self._specials)) + ")")

    def special_ids(self) -> dict[str, int]:
        ids = {token: self.vocab_size + offset for offset, token in enumerate(_COMMANDS)}
        if self.flavour == "port":
            ids["[UNK]"] = self._pieces.unk_id()
        else:
            ids["[UNK]"] = ids.pop("[UNUSED1]")
            del ids["[UNUSED2]"]
            if not self.fix_command_token:
                ids["[gMASK]"] = ids["<|endofpiece|>"]
        return ids

    def _update_total_vocab_size(self) -> None:
        self.total_vocab_size = max(self.get_vocab().values()) + 1  # ids, not names: two names may share an id

    def encode_plain(self, text: str) -> list[int]:
        if "[" not in text and "<|" not in text:
            return self._pieces.encode(text)
        ids: list[int] = []
        for part, command in self._parts(text):
            ids += [self._specials[part]] if command else self._pieces.encode(part)
        return ids

    def _not_for_kernel(self, texts: Sequence[str]) -> list[int]:
        found = (number for number, text in enumerate(texts) if "[" in text or "<|" in text)
        return [number for number in found if self._split.search(texts[number])]

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text between command tokens, without the white space that they swallow, and those (True)."""
        parts = self._split.split(text)
        for index, part in enumerate(parts):
            if index % 2:
                yield part, True
                continue
            if index and self.flavour == "port":
                part = part.lstrip()
            after = parts[index + 1] if index + 1 < len(parts) else ""
            if after and (self.flavour == "port" or after in _MASKS):
                part = part.rstrip()
            if part:
                yield part, False

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        tokens: list[str] = []
        for part, command in self._parts(text):
            tokens += [part] if command else self._pieces.encode(part, out_type=str)
        return tokens

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        return list(map(self._convert_id_to_token, self._kept(ids, skip_special_tokens)))

    def _kept(self, ids: Sequence[int], skip_special_tokens: bool) -> list[int]:
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [index for index in map(int, ids) if index not in skipped]

    def decode_plain(self, ids: list[int], skip_special_tokens: bool, clean_up: bool | None) -> str:
        parts = list(self._decoded_parts(self._kept(ids, skip_special_tokens)))
        if self.flavour == "original":
            return "".join(parts)
        text = " ".join(parts)
        for spaced, tidy in _TIDY if clean_up is not False else ():
            text = text.replace(spaced, tidy)
        return text

    def _decoded_parts(self, ids: list[int]) -> Iterator[str]:
        for command, run in groupby(ids, key=lambda index: index in self._special_names):
            if command:
                yield from (self._special_names[index] for index in run)
            else:
                yield self._pieces.decode(list(run))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        second = [] if token_ids_1 is None else [self.sep_token_id, *token_ids_1]
        return [self.cls_token_id, *token_ids_0, *second, self.eos_token_id]
