"""GLM's tokenizer: sentencepiece between command tokens, and the inputs of blank filling. Exact to the originals.

There were two originals, and they differ in what a typed command token becomes: the port to transformers
("port"), and the one the models were trained with ("original"), itself in two variants.

Travels with exported models: what it imports of hanmo imports nothing of hanmo, and is put into its text on export.
Source: the recorded specification of GLM, section "Tokenizer (port)".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import BatchEncoding, PreTrainedTokenizer

from hanmo.tokenizers.batching import BatchEncodingMixin, compiled

_COMMANDS = (
    "<|endoftext|>",
    "[SEP]",
    "[CLS]",
    "[MASK]",
    "[UNUSED1]",
    "[UNUSED2]",
    "<|startofpiece|>",
    "<|endofpiece|>",
    "[sMASK]",
    "[gMASK]",
)
_MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
# English spacing, tidied up after decoding, in this order
_TIDY: tuple[tuple[str, str], ...] = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


class GlmTokenizer(BatchEncodingMixin, PreTrainedTokenizer):
    """A single text becomes ``[CLS]`` A ``<|endoftext|>``, a pair ``[CLS]`` A ``[SEP]`` B ``<|endoftext|>``.

    Truncation takes from the left, padding is on the right.

    Args:
        vocab_file: the sentencepiece model; command tokens follow its pieces.
        flavour: "port", as in transformers; or "original", as trained: ``[UNK]`` has an id of its own and decoding
            puts no spaces around command tokens.
        fix_command_token: False is the original's variant for the 10B model, where ``[gMASK]`` shares the id of
            ``<|endofpiece|>``.

    Raises:
        ValueError: an unknown flavour, or a variant the port does not have.
    """

    vocab_files_names = {"vocab_file": "cog-pretrain.model"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"
    truncation_side = "left"

    def __init__(
        self,
        vocab_file: str,
        eos_token: str = "<|endoftext|>",
        unk_token: str = "[UNK]",
        sep_token: str = "[SEP]",
        pad_token: str = "<|endoftext|>",
        cls_token: str = "[CLS]",
        mask_token: str = "[MASK]",
        flavour: str = "port",
        fix_command_token: bool = True,
        **kwargs: Any,
    ) -> None:
        if flavour not in ("port", "original"):
            raise ValueError(f"flavour is {flavour!r}; expected one of: port, original")
        if flavour == "port" and not fix_command_token:
            raise ValueError("fix_command_token=False is a variant of flavour='original' only")
        self.flavour = flavour
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
        first = self._pieces.vocab_size()
        self._commands = {token: first + offset for offset, token in enumerate(_COMMANDS)}
        if flavour == "port":
            self._commands["[UNK]"] = self._pieces.unk_id()
        else:
            self._commands["[UNK]"] = self._commands.pop("[UNUSED1]")
            del self._commands["[UNUSED2]"]
            if not fix_command_token:
                self._commands["[gMASK]"] = self._commands["<|endofpiece|>"]
        self._command_names = {index: token for token, index in self._commands.items() if index >= first}
        self._split = re.compile("(" + "|".join(map(re.escape, self._commands)) + ")")
        for name in ("additional_special_tokens", "extra_special_tokens", "split_special_tokens"):
            kwargs.pop(name, None)  # they are given by the format
        super().__init__(
            eos_token=eos_token,
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            cls_token=cls_token,
            mask_token=mask_token,
            extra_special_tokens=["<|startofpiece|>", "<|endofpiece|>", "[gMASK]", "[sMASK]"],
            split_special_tokens=True,  # tokens are found here, by _tokenize
            flavour=flavour,
            fix_command_token=fix_command_token,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Number of sentencepiece pieces, without command tokens."""
        return int(self._pieces.vocab_size())

    @property
    def sop_token_id(self) -> int:
        """Start of piece: what a blank's text begins with."""
        return self._commands["<|startofpiece|>"]

    @property
    def eop_token_id(self) -> int:
        """End of piece: what a blank's text ends with."""
        return self._commands["<|endofpiece|>"]

    @property
    def smask_token_id(self) -> int:
        """The blank of a sentence."""
        return self._commands["[sMASK]"]

    @property
    def gmask_token_id(self) -> int:
        """The blank for a long continuation."""
        return self._commands["[gMASK]"]

    @property
    def mask_token_ids(self) -> list[int]:
        """Ids of the three blanks: word, sentence, continuation."""
        return [self._commands[token] for token in _MASKS]

    def get_vocab(self) -> dict[str, int]:
        ordinary = {self._pieces.id_to_piece(index): index for index in range(self.vocab_size)}
        if self._commands["[UNK]"] in ordinary.values():  # another name for the same id
            del ordinary[self._pieces.id_to_piece(self._commands["[UNK]"])]
        return {**ordinary, **self._commands, **self._added_tokens_encoder}

    def _update_total_vocab_size(self) -> None:
        self.total_vocab_size = max(self.get_vocab().values()) + 1  # ids, not names: two names may share an id

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text and nothing else; command tokens in it are themselves."""
        if "[" not in text and "<|" not in text:
            return self._pieces.encode(text)
        ids: list[int] = []
        for part, command in self._parts(text):
            ids += [self._commands[part]] if command else self._pieces.encode(part)
        return ids

    def _kernel(self) -> Any:
        return compiled("pieces", self._model)

    @cached_property
    def _model(self) -> bytes:
        """What the kernel is found by; kept, as these bytes are hashed once only."""
        return bytes(self._pieces.serialized_model_proto())

    def _not_for_kernel(self, texts: Sequence[str]) -> list[int]:
        found = (number for number, text in enumerate(texts) if "[" in text or "<|" in text)
        return [number for number in found if self._split.search(texts[number])]

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **kwargs: Any) -> list[int]:
        """As in transformers; a text without special tokens takes the short way."""
        if not add_special_tokens and text_pair is None and not kwargs and isinstance(text, str):
            return self.encode_plain(text)
        return super().encode(text, text_pair, add_special_tokens=add_special_tokens, **kwargs)

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """What stands between command tokens, and those (True), without the white space that they swallow."""
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

    def _convert_token_to_id(self, token: str) -> int:
        if token in self._commands:
            return self._commands[token]
        return int(self._pieces.piece_to_id(token))

    def _convert_token_to_id_with_added_voc(self, token: str) -> int:
        if token in self._commands:
            return self._commands[token]
        return int(self._added_tokens_encoder.get(token, self._pieces.piece_to_id(token)))

    def _convert_id_to_token(self, index: int) -> str:
        return self._command_names.get(index) or str(self._pieces.id_to_piece(index))

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Tokens of ids, or of one: the command token of this flavour, or the piece."""
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        kept = self._kept(ids, skip_special_tokens)
        return [self._convert_id_to_token(index) for index in kept]

    def _kept(self, ids: Sequence[int], skip_special_tokens: bool) -> list[int]:
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [index for index in map(int, ids) if index not in skipped]

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Ids as text: runs of pieces by sentencepiece, command tokens verbatim."""
        ids = self._kept([token_ids] if isinstance(token_ids, int) else token_ids, skip_special_tokens)
        parts = list(self._decoded_parts(ids))
        if self.flavour == "original":
            return "".join(parts)
        text = " ".join(parts)
        for spaced, tidy in _TIDY if clean_up_tokenization_spaces is not False else ():
            text = text.replace(spaced, tidy)
        return text

    def _decoded_parts(self, ids: list[int]) -> Iterator[str]:
        for command, run in groupby(ids, key=lambda index: index in self._command_names):
            if command:
                yield from (self._command_names[index] for index in run)
            else:
                yield self._pieces.decode(list(run))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        second = [] if token_ids_1 is None else [self.sep_token_id, *token_ids_1]
        return [self.cls_token_id, *token_ids_0, *second, self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, True)
        second = [] if token_ids_1 is None else [1] + [0] * len(token_ids_1)
        return [1] + [0] * len(token_ids_0) + second + [1]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        name = (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        target = Path(save_directory) / name
        beside = target.with_name(f"{name}.{os.getpid()}.tmp")
        beside.write_bytes(self._pieces.serialized_model_proto())
        beside.replace(target)
        return (str(target),)

    def build_inputs_for_generation(
        self,
        encoded: BatchEncoding,
        max_gen_length: int = 512,
        targets: str | Sequence[str] | None = None,
        padding: bool = False,
    ) -> BatchEncoding:
        """Inputs for filling the first blank of each text: its place in the positions, the blank's text behind it.

        Args:
            encoded: what calling the tokenizer gave: ``input_ids`` and ``attention_mask``, (B, S).
            max_gen_length: G, tokens of the blank's text.
            targets: the blanks' texts, to learn from; cut to ``max_gen_length`` with their ``<|endofpiece|>``.
            padding: fill targets up to ``max_gen_length`` rather than to the longest of the batch.

        Returns:
            Tensors, int64. ``position_ids`` (B, 2, S + G). Without targets ``input_ids`` (B, S + 1), which end in
            ``<|startofpiece|>``, and ``generation_attention_mask`` (B, 1, S + G, S + G) for the whole of generation.
            With targets ``input_ids`` (B, S + G), ``attention_mask`` (B, 1, S + G, S + G) and ``labels``
            (B, S + G), which hold the pad id where nothing is to be learnt.

        Raises:
            ValueError: a text has no blank.
        """
        import torch

        context_BS, seen_BS = torch.as_tensor(encoded["input_ids"]), torch.as_tensor(encoded["attention_mask"])
        batch, context = context_BS.shape
        is_blank_BS = torch.isin(context_BS, torch.tensor(self.mask_token_ids))
        if not is_blank_BS.any(1).all():
            raise ValueError("Cannot find mask token in the input")
        sop_B1 = torch.full((batch, 1), self.sop_token_id)
        length = max_gen_length
        if targets is not None:
            texts = [targets] if isinstance(targets, str) else list(targets)
            ids = [[*self.encode_plain(text)[: max_gen_length - 1], self.eop_token_id] for text in texts]
            length = max_gen_length if padding else max(map(len, ids))
            targets_BG = torch.tensor([[*row, *[self.pad_token_id] * (length - len(row))] for row in ids])
        blank_B1 = is_blank_BS.int().argmax(1, keepdim=True)
        places_BT = torch.cat([torch.arange(context).expand(batch, -1), blank_B1.expand(-1, length)], 1)
        steps_BT = torch.cat([torch.zeros(context, dtype=torch.long), torch.arange(1, length + 1)]).expand(batch, -1)
        mask_BTT = torch.zeros(batch, context + length, context + length, dtype=torch.long)
        mask_BTT[:, :, :context] = seen_BS[:, None]
        mask_BTT[:, context:, context:] = torch.ones(length, length, dtype=torch.long).tril()
        inputs = {"position_ids": torch.stack([places_BT, steps_BT], 1)}
        if targets is None:
            inputs["input_ids"] = torch.cat([context_BS, sop_B1], 1)
            inputs["generation_attention_mask"] = mask_BTT[:, None]
        else:
            inputs["input_ids"] = torch.cat([context_BS, sop_B1, targets_BG[:, :-1]], 1)
            inputs["attention_mask"] = mask_BTT[:, None]
            inputs["labels"] = torch.cat([torch.full_like(context_BS, self.pad_token_id), targets_BG], 1)
        return BatchEncoding(inputs)

    def build_inputs_for_multiple_choice(
        self, encoded: BatchEncoding, choices: Sequence[Sequence[str]]
    ) -> BatchEncoding:
        """Inputs that score all choices for the ``[MASK]`` of each text at once; choices do not see one another.

        Args:
            encoded: what calling the tokenizer gave: ``input_ids`` and ``attention_mask``, (B, S).
            choices: for each text the texts that may fill its blank.

        Returns:
            Tensors, int64: ``input_ids`` (B, T), ``position_ids`` (B, 2, T), ``attention_mask`` (B, 1, T, T). Lists
            by text and choice: ``choice_ids``, and ``choice_indices``, the places whose logits predict them.

        Raises:
            ValueError: a text has no ``[MASK]``.
        """
        import torch
        from torch.nn.functional import pad

        rows = []
        for context, seen, texts in zip(encoded["input_ids"], encoded["attention_mask"], choices, strict=True):
            rows.append(self._choices_of_one(torch.as_tensor(context), torch.as_tensor(seen), texts))
        width = max(len(row["input_ids"]) for row in rows)

        def filled(row: dict[str, Any]) -> tuple[Any, Any, Any]:
            missing = width - len(row["input_ids"])
            last_P1 = row["position_ids"][:, -1:]
            return (
                pad(row["input_ids"], (0, missing)),
                torch.cat([row["position_ids"], last_P1.expand(-1, missing)], 1),
                pad(row["attention_mask"], (0, missing, 0, missing)),
            )

        ids, positions, masks = zip(*map(filled, rows), strict=True)
        return BatchEncoding(
            {
                "input_ids": torch.stack(ids),
                "position_ids": torch.stack(positions),
                "attention_mask": torch.stack(masks)[:, None],
                "choice_ids": [row["choice_ids"] for row in rows],
                "choice_indices": [row["choice_indices"] for row in rows],
            }
        )

    def _choices_of_one(self, context_S: Any, seen_S: Any, texts: Sequence[str]) -> dict[str, Any]:
        import torch

        blanks = (context_S == self.mask_token_id).nonzero()
        if not len(blanks):
            raise ValueError(f"No [MASK] in the input: {self.mask_token_id} is not in list")
        context, choice_ids = len(context_S), [self.encode_plain(text) for text in texts]
        ids, steps, indices = context_S.tolist(), [0] * context, []
        for choice in choice_ids:
            indices.append(list(range(len(ids), len(ids) + len(choice))))
            ids += [self.sop_token_id, *choice[:-1]]
            steps += range(1, len(choice) + 1)
        total = len(ids)
        mask_TT = torch.zeros(total, total, dtype=torch.long)
        mask_TT[:, :context] = seen_S
        for places in indices:
            start, end = places[0], places[-1] + 1
            mask_TT[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.long).tril()
        places_T = [*range(context), *[int(blanks[0])] * (total - context)]
        return {
            "input_ids": torch.tensor(ids),
            "position_ids": torch.tensor([places_T, steps]),
            "attention_mask": mask_TT,
            "choice_ids": choice_ids,
            "choice_indices": indices,
        }
