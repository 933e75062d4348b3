"""Probes for exact results of a transformers model: some architectures ignore padding, positions or the cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hanmo.errors import UnsupportedError, reraise_out_of_memory
from hanmo.nn.batching import Batching
from hanmo.nn.cpu.int8 import is_int8
from hanmo.nn.finite import require_finite
from hanmo.rows import stack

TOLERANCE = 1e-3  # relative to the largest value; scaled or capped logits are off by whole units
CLOSE = 1e-4  # RMS of the difference between batched and single logits over the RMS of the logits, in fp32
ROUNDED = 3  # the same in half precision and int8, in multiples of the error of rounding all modules' outputs again
CLOSE_ROUNDED = 0.15  # and at most this: rounding grows from layer to layer
INT8_STEP = 1 / 1024  # of the output of a layer; an input is off by 1 / 15,876 of the largest of its row
#: the errors that unusual architectures raise in a probe
PROBE_ERRORS = (AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError)
LENGTHS = (5, 11)  # of the prompts of a probe
FOLLOWING = 3  # tokens that follow each prompt
SPARSE = "block_sparse"  # BigBird's type of attention
Batch = Literal["any", "even", "one"]


@dataclass(frozen=True)
class ProbedBatching(Batching):
    cached: bool = True  # the model's own cache is exact; otherwise the whole text is read again for every token
    positions: bool = True  # position ids are an input; otherwise the model counts positions by itself
    slots: bool = False  # steps in a state with ``fixed`` columns are exact


@contextmanager
def probing(model: Any) -> Iterator[torch.Generator]:
    """Switch dropout, gradients and mixed precision off; yields a seeded generator."""
    training, mixed = model.training, vars(model).get("forward")
    model.eval()
    if plain := vars(model).get("_original_forward"):  # kept by accelerate when it wraps forward in autocast
        model.forward = plain
    try:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            yield torch.Generator().manual_seed(0)
    finally:
        if plain:
            model.forward = mixed
        model.train(training)


def drawn(model: Any, generator: torch.Generator, *shape: int) -> Tensor:
    """Random ids other than the padding id, which some models mask themselves."""
    config = model.config.get_text_config()
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    pad_id = getattr(config, "pad_token_id", None)
    ids[ids == (0 if pad_id is None else pad_id)] = (0 if pad_id else 2) % config.vocab_size
    return ids.to(model.get_input_embeddings().weight.device)


def find_batching(model: Any) -> ProbedBatching:
    """The fastest ``ProbedBatching`` whose logits are those of each text alone; UnsupportedError if none is exact."""
    with probing(model) as generator:
        prompts = [drawn(model, generator, length) for length in (*LENGTHS, LENGTHS[1])]
        follow_RS = drawn(model, generator, len(prompts), FOLLOWING)
        texts = list(zip(prompts, follow_RS, strict=True))
        try:
            whole = [_own_logits(model, prompt, follow_S) for prompt, follow_S in texts]
            start = [_own_logits(model, prompt, follow_S[:1]) for prompt, follow_S in texts]
        except PROBE_ERRORS as error:
            reraise_out_of_memory(error)
            raise UnsupportedError(f"{_named(model)} cannot be run as a language model: {error}") from error
        expected_RSV = torch.stack(whole)
        if bool(expected_RSV.isnan().any()) or bool(expected_RSV.isposinf().any()):
            require_finite([float("nan")], model)
        limit = _limit(model, prompts[-1], follow_RS[-1], expected_RSV[-1])
        if _distance(torch.stack(start)[:, :2], expected_RSV[:, :2]) > limit:
            raise UnsupportedError(
                f"{_named(model)} sees the tokens that it should predict, so that it can neither be scored nor decoded; "
                "if its configuration has is_decoder, that must be true"
            )
        probe = _Probe(model, prompts, follow_RS, expected_RSV, limit)
        # The results of experts with a capacity and of BigBird's sparse attention depend on the batch size.
        alone = hasattr(model.config, "expert_capacity") or getattr(model.config, "attention_type", "") == SPARSE
        lone = alone or rope_by_length(model.config)
        rows: Literal["any", "one"] = "any" if not lone and probe.rows() else "one"
        for cached, positions, batch in _candidates(model):
            batching = ProbedBatching(batch=batch, rows=rows, cached=cached, positions=positions)
            if lone and (batch != "one" or (alone and cached)):
                continue
            if probe.decodes(batching):
                return replace(
                    batching,
                    continues=batch == "any" and probe.decodes(batching, at_once=FOLLOWING),
                    slots=batch == "any" and cached and positions and probe.decodes(batching, fixed=True),
                )
    raise UnsupportedError(f"{_named(model)} gives other logits in steps than for the whole text: it cannot be decoded")


def rope_by_length(config: Any) -> bool:
    """Whether the frequencies of rotary positions depend on the longest row: rows of a batch and pieces of a prompt differ then."""
    text = config.get_text_config()
    found = str(getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None))
    return "'dynamic'" in found or "'longrope'" in found


def _candidates(model: Any) -> Iterator[tuple[bool, bool, Batch]]:
    """(cached, positions, batch) to try, the fastest first."""
    given: Sequence[bool] = (False,) if model.config.is_encoder_decoder else (True, False)
    batches: tuple[Batch, ...] = ("any", "even", "one")
    yield from ((True, positions, batch) for batch in batches for positions in given)
    yield from ((False, False, batch) for batch in batches)


def _named(model: Any) -> str:
    return f"{type(model).__name__} ({model.config.model_type})"


def _own_logits(model: Any, prompt_T: Tensor, follow_S: Tensor) -> Tensor:
    """The model's own logits (S + 1, V) of the tokens after a prompt, from one forward pass without a cache."""
    if model.config.is_encoder_decoder:
        fed = torch.cat([follow_S.new_tensor([model.config.decoder_start_token_id]), follow_S])
        logits = model(input_ids=prompt_T[None], decoder_input_ids=fed[None], use_cache=False).logits
    else:
        logits = model(input_ids=torch.cat([prompt_T, follow_S])[None], use_cache=False).logits
    return logits[0, -len(follow_S) - 1 :].float()


def _limit(model: Any, prompt_T: Tensor, follow_S: Tensor, expected_SV: Tensor) -> float:
    """The largest distance (see ``_distance``) between logits that counts as rounding: fixed in fp32, else measured.

    Inexact logits are off by a few percent: more than rounding errors of most networks, less than those of a deep one.
    """
    if model.dtype == torch.float32 and not is_int8(model):
        return CLOSE
    step = INT8_STEP if is_int8(model) else torch.finfo(model.dtype).eps / 2
    generator = torch.Generator().manual_seed(0)

    def rounded(_: Any, __: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        noise = torch.rand(output.shape, generator=generator).to(output.device)
        return (output.float() * (1 + step * (2 * noise - 1))).to(output.dtype)

    leaves = [module for module in model.modules() if next(module.children(), None) is None]
    hooks = [module.register_forward_hook(rounded) for module in leaves]
    try:
        again_SV = _own_logits(model, prompt_T, follow_S)
    finally:
        for hook in hooks:
            hook.remove()
    return min(CLOSE_ROUNDED, ROUNDED * _distance(again_SV, expected_SV))


def _distance(found: Tensor, expected: Tensor) -> float:
    """RMS of the difference of logits (…, V) over their RMS, without places that are -inf in ``expected``."""
    finite = expected.isfinite()
    difference, size = ((x[finite]).square().mean().sqrt() for x in (found.float() - expected, expected))
    return float(difference / size) if difference else 0.0


@dataclass(frozen=True)
class _Probe:
    """Prompts of different and of equal length, the tokens after each, and the logits that predict these."""

    model: Any
    prompts: list[Tensor]
    follow: Tensor  # (R, S)
    expected: Tensor  # (R, S + 1, V)
    limit: float

    def rows(self) -> bool:
        """Whether rows of different lengths, padded on the right, get the same scores in one batch as alone."""
        encodes = self.model.config.is_encoder_decoder
        rows = [torch.cat([p, s]) for p, s in zip(self.prompts, self.follow, strict=True)]
        inputs = stack([_with_mask(row) for row in (self.prompts if encodes else rows)], {})
        if encodes:
            start = torch.full_like(self.follow[:, :1], self.model.config.decoder_start_token_id)
            inputs["decoder_input_ids"] = torch.cat([start, self.follow], dim=1)
        try:
            logits_RTV = self.model(**inputs, use_cache=False).logits
        except PROBE_ERRORS as error:
            reraise_out_of_memory(error)
            return False
        ends = [logits_RTV.shape[1] if encodes else len(row) for row in rows]
        found = [logits_RTV[number, end - FOLLOWING - 1 : end] for number, end in enumerate(ends)]
        return self._right(torch.stack(found), self.expected)

    def decodes(self, batching: ProbedBatching, at_once: int = 1, fixed: bool = False) -> bool:
        """Whether decoding is exact: prompts are read in one batch and continued in another order, one row twice.

        ``fixed``: in a state with columns for two more tokens than there are.
        """
        groups = {"any": [[0, 1]], "even": [[1, 2]], "one": [[0], [1]]}[batching.batch]
        try:
            return all(self._decodes(batching, group, at_once, fixed) for group in groups)
        except PROBE_ERRORS as error:
            reraise_out_of_memory(error)
            return False

    def _decodes(self, batching: ProbedBatching, group: list[int], at_once: int, fixed: bool) -> bool:
        model, encodes = self.model, self.model.config.is_encoder_decoder
        inputs = stack([_with_mask(self.prompts[number]) for number in group], {}, left=not encodes)
        if encodes:
            first_R1 = inputs["input_ids"][:, :1]
            inputs["decoder_input_ids"] = torch.full_like(first_R1, model.config.decoder_start_token_id)
        logits_R1V, first = model.read(batching, **inputs)
        found = [self._right(logits_R1V[:, 0], self.expected[group, 0])]
        lengths = torch.tensor([len(self.prompts[number]) for number in group], device=model.device)
        kept = list(range(len(group)))
        state = first
        for start in range(0, FOLLOWING, at_once):
            if start < (1 if fixed else 2):  # ``take`` must copy: ``first`` is used below
                taken = [*reversed(range(len(kept))), 0]
                kept = [kept[place] for place in taken]
                state = state.take(torch.tensor(taken, device=model.device))
                if fixed:
                    state = state.fixed(LENGTHS[1] + FOLLOWING + 2)
            numbers = [group[place] for place in kept]
            end = start + at_once
            positions = lengths[kept][:, None, None] + torch.arange(start, end, device=model.device)
            logits_RqV = model.step(self.follow[numbers, start:end], positions, state)
            found.append(self._right(logits_RqV, self.expected[numbers, start + 1 : end + 1]))
        again = model.step(self.follow[group, :1], lengths[:, None, None], first)
        return all(found) and self._right(again, self.expected[group, 1:2])

    def _right(self, found: Tensor, expected: Tensor) -> bool:
        return found.shape == expected.shape and _distance(found, expected) <= self.limit


def _with_mask(ids_T: Tensor) -> dict[str, Tensor]:
    positions_T = torch.arange(len(ids_T)).to(ids_T)
    return {"input_ids": ids_T, "attention_mask": torch.ones_like(ids_T), "position_ids": positions_T}


def head_is_exact(model: Any, last_hidden: Any) -> bool:
    """Whether the output head on the last hidden states gives the model's own logits, on four tokens."""
    with probing(model):
        device = model.get_input_embeddings().weight.device
        ids = torch.arange(4, device=device)[None] % model.config.get_text_config().vocab_size
        inputs = {"input_ids": ids, "use_cache": False}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        try:
            own = model(**inputs).logits
        except PROBE_ERRORS as error:
            raise UnsupportedError(f"{_named(model)} is not read like a language model: {error}") from error
        try:
            difference = (model.get_output_embeddings()(last_hidden(model, **inputs)) - own).abs().max()
        except PROBE_ERRORS as error:
            reraise_out_of_memory(error)
            return False  # built differently: whole logits are always correct
        return bool(difference <= TOLERANCE * own.abs().max())


def packing_is_exact(model: Any) -> bool:
    """Whether examples that share a row, told apart by their positions, give the same logits as alone."""
    with probing(model) as generator:
        device, size = model.get_input_embeddings().weight.device, model.config.get_text_config().vocab_size
        ids = torch.randint(size, (2, 15), generator=generator).to(device)
        lengths = (4, 6, 5)
        places = torch.cat([torch.arange(length) for length in lengths]).to(device)
        padded = torch.where(torch.arange(15, device=device) < 10, places, 0)
        try:
            together = model.base_model(input_ids=ids, position_ids=torch.stack([places, padded]), use_cache=False)
            pieces = [*ids[0].split(lengths), *ids[1].split(lengths)[:2]]
            alone = [model.base_model(input_ids=piece[None], use_cache=False).last_hidden_state[0] for piece in pieces]
        except PROBE_ERRORS as error:
            reraise_out_of_memory(error)
            return False  # built differently, e.g. without positions
        expected = torch.cat(alone).float()
        found = together.last_hidden_state.flatten(0, 1)[: len(expected)].float()
        tolerance = TOLERANCE if model.dtype == torch.float32 else 30 * TOLERANCE
        return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
