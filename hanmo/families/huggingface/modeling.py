"""Gives a transformers model our interface: rows in, loss out; prefill and step.

The model keeps its class's name, weights, configuration and files. Some models change their logits after the output head
(scale or cap them): a probe on loading finds them, and their rows are scored from whole logits, which takes more memory.
"""

import functools
import inspect
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig
from transformers.models.auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from hanmo.errors import HanmoError, UnsupportedError
from hanmo.families.huggingface.probes import SPARSE, ProbedBatching, find_batching, head_is_exact, packing_is_exact
from hanmo.families.huggingface.states import CachedState, UncachedState
from hanmo.families.huggingface.tensor_parallel import settle_heads, with_plan
from hanmo.families.safe_loading import own_code, safe_blank, safe_network
from hanmo.families.stops import config_value
from hanmo.files import read_json
from hanmo.losses import token_entropies, token_logprobs, weighted_nll
from hanmo.nn import row_model
from hanmo.nn.cpu.layers import Linear
from hanmo.nn.prenorm import beyond_positions, check_positions
from hanmo.rows import IGNORE

VALUE_HEAD = "value_head"  # the name of its tensors in the files
_AFTER_PADDING = re.compile("roberta|camembert|xmod|data2vec")  # positions begin behind that of padding
PARTS = ("encoder", "decoder")
POSITION_TABLES = ("wpe", "position_embeddings")  # attributes with learned positions in GPT-2, BERT and similar models


def positions_of(config: PretrainedConfig) -> tuple[int | None, int | None]:
    """The tokens that an encoder and a decoder have positions for, as the configuration says; None: it does not say."""
    both = ("max_position_embeddings", "max_seq_len")  # the second is MPT's
    parts = [[config_value(config, key) for key in (f"max_{part}_position_embeddings", *both)] for part in PARTS]
    lost = (config.pad_token_id or 0) + 1 if _AFTER_PADDING.search(config.model_type) else 0
    encoder, decoder = (next((value - lost for value in found if isinstance(value, int)), None) for found in parts)
    return encoder, decoder


def _within_positions(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method say so where transformers fails because a row has more tokens than the model has positions."""

    @functools.wraps(method)
    def explained(model: Any, *args: Any, **inputs: Any) -> Any:
        try:
            return method(model, *args, **inputs)
        except (IndexError, RuntimeError, ValueError) as error:
            # A state with fixed columns has more of them than tokens, and its positions were checked before.
            in_slots = method.__name__ == "step" and getattr(args[-1], "at", None) is not None
            if in_slots or isinstance(error, HanmoError | torch.OutOfMemoryError):
                raise
            state = args[-1].columns if method.__name__ == "step" else None
            given, answered = inputs.get("input_ids"), inputs.get("decoder_input_ids", state)
            if not model.config.is_encoder_decoder:
                given, answered = None, given if state is None else state
            for ids, positions in zip((given, answered), positions_of(model.config), strict=True):
                if ids is not None and positions and ids.shape[1] > positions:
                    raise beyond_positions(ids.shape[1], positions) from error
            raise

    return explained


class TransformersRows:
    """A mixin that ``adopt`` adds to the class of a loaded model; see ``RowModel`` for the interface."""

    accepts_loss_kwargs = True
    loss_type = "hanmo_rows"
    #: the output head alone gives the model's logits
    head_is_exact = True
    #: examples that share a row do not see each other; None: not probed yet
    packing_is_exact: bool | None = None
    #: ``tree`` is exact; None: not probed yet
    trees_are_exact: bool | None = None
    _position_tables: list[nn.Embedding]  # learned positions
    _batching: ProbedBatching | None = None
    value_head: row_model.ValueHead | None
    critic: Any

    @_within_positions
    def forward(
        self,
        *args: Any,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        entropy: bool = False,
        suppressed_ids: Tensor | None = None,
        scored: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Rows (labels with weights) are scored as RowModel does; any other call is the model's own forward."""
        self._settle_attention()
        if labels is None or weights is None:
            own = inputs if labels is None else inputs | {"labels": labels}
            return super().forward(*args, **own)  # type: ignore[misc]
        known = dict(inputs)
        inputs["use_cache"] = False
        if "position_ids" in inputs:  # packed rows, see HuggingfaceFamily.pack
            if self.packing_is_exact is None:
                self.packing_is_exact = packing_is_exact(self)
            if not self.packing_is_exact:
                raise UnsupportedError(
                    f"{type(self).__name__} lets examples that share a row see each other: packing=false"
                )
            del inputs["attention_mask"]  # restarting positions tell the examples apart
        if self.head_is_exact:
            hidden_BAD = _last_hidden(self, *args, **inputs)
            head, kept = self.get_output_embeddings(), row_model.kept_places(self)  # type: ignore[attr-defined]
            found = row_model.score_tokens(head, hidden_BAD, labels, entropy, suppressed_ids, kept, scored=scored)
            logprob_BA, entropy_BA = found
        else:
            output = super().forward(*args, **inputs, output_hidden_states=self.value_head is not None)  # type: ignore[misc]
            logits_BAV = row_model.without_suppressed(output.logits, suppressed_ids)
            logprob_BA, entropy_BA = _score_logits(logits_BAV, labels, entropy)
            states = "decoder_hidden_states" if self.config.is_encoder_decoder else "hidden_states"  # type: ignore[attr-defined]
            hidden_BAD = None if self.value_head is None else output[states][-1]
        value_BA = row_model.values_of(self, hidden_BAD, labels, known)
        loss = weighted_nll(logprob_BA, weights, num_items_in_batch)
        return row_model.RowOutput(loss=loss, logprob=logprob_BA, entropy=entropy_BA, value=value_BA)

    def _settle_attention(self) -> None:
        """Restore BigBird's sparse attention, which switches to full attention for a short text and never back."""
        if getattr(self.config, "attention_type", "") == SPARSE:  # type: ignore[attr-defined]
            for module in self.modules():  # type: ignore[attr-defined]
                if module is not self and getattr(module, "attention_type", SPARSE) != SPARSE:
                    module.set_attention_type(SPARSE)

    @property
    def batching(self) -> ProbedBatching:
        """The texts that can share a batch; probed at first use."""
        if self._batching is None:
            self._batching = find_batching(self)
        return self._batching

    def prefill(self, **inputs: Tensor) -> tuple[Tensor, Any]:
        """As ``RowModel.prefill``, but an encoder's input is padded on the right."""
        return self.read(self.batching, **inputs)

    @_within_positions
    def read(self, batching: ProbedBatching, **inputs: Tensor) -> tuple[Tensor, Any]:
        """``prefill`` with a given ``batching``; ``find_batching`` tries several."""
        self._settle_attention()
        ids_RT, mask_RT = inputs["input_ids"], inputs["attention_mask"]
        start_R1 = inputs.get("decoder_input_ids")
        if start_R1 is not None:
            encoder = self.get_encoder()(input_ids=ids_RT, attention_mask=mask_RT)  # type: ignore[attr-defined]
            if not batching.cached:
                again = UncachedState(start_R1, torch.ones_like(start_R1[:, 0]), encoder, mask_RT)
                return again.logits(self.forward, 1), again
            fed = {"encoder_outputs": encoder, "attention_mask": mask_RT, "decoder_input_ids": start_R1}
            output = self.forward(**fed, use_cache=True)
            return output.logits, CachedState(output.past_key_values, torch.ones_like(start_R1), encoder, mask_RT)
        if not batching.cached:
            again = UncachedState.of(ids_RT, mask_RT)
            return again.logits(self.forward, 1), again
        if not batching.positions:
            inputs.pop("position_ids", None)
        output = self.forward(**self._known(inputs), use_cache=True, logits_to_keep=1)
        cache, positions = output.past_key_values, batching.positions
        return output.logits[:, -1:], CachedState(cache, mask_RT, positions=positions, batch=batching.batch)

    @_within_positions
    def step(self, ids_Rq: Tensor, positions_RPq: Tensor, state: Any) -> Tensor:
        if isinstance(state, UncachedState):
            state.extend(ids_Rq)
            return state.logits(self.forward, ids_Rq.shape[1])
        if state.at is not None:
            masked = state.blocked(self.dtype)  # type: ignore[attr-defined]
            fixed = {"attention_mask": masked, "position_ids": positions_RPq[:, 0], "past_key_values": state.cache}
            return self.forward(input_ids=ids_Rq, **fixed, use_cache=True).logits
        state.mask_RC = torch.cat([state.mask_RC, torch.ones_like(ids_Rq)], dim=1)
        inputs: dict[str, Any] = {"encoder_outputs": state.encoder, "attention_mask": state.encoder_mask_RT}
        inputs["decoder_input_ids"] = ids_Rq
        if state.encoder is None:
            inputs = {"input_ids": ids_Rq, "attention_mask": state.mask_RC}
            if state.positions:
                inputs |= self._known({"position_ids": positions_RPq[:, 0]})
        output = self.forward(**inputs, past_key_values=state.cache, use_cache=True)
        state.cache = output.past_key_values
        return output.logits

    def require_positions(self, positions: Tensor) -> None:
        """As ``RowModel.require_positions``, for positions that are learned."""
        for table in self._position_tables:
            check_positions(positions, table, columns=sys.maxsize)

    def tree(self, ids_BT: Tensor, positions_BT: Tensor, sees_BTT: Tensor) -> Tensor:
        """See ``RowModel.tree``. Not exact for architectures that ignore the mask or the positions."""
        if not self.head_is_exact:
            raise NotImplementedError("the output head alone does not make this model's logits")
        blocked = torch.zeros(sees_BTT.shape, dtype=self.dtype, device=ids_BT.device)  # type: ignore[attr-defined]
        blocked.masked_fill_(~sees_BTT, torch.finfo(blocked.dtype).min)
        inputs = {"input_ids": ids_BT, "position_ids": positions_BT, "attention_mask": blocked[:, None]}
        return self.base_model(**inputs, use_cache=False).last_hidden_state  # type: ignore[attr-defined]

    def _known(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs, without position ids if the architecture counts positions itself."""
        accepts = inspect.signature(super().forward).parameters  # type: ignore[misc]
        return inputs if "position_ids" in accepts else {k: v for k, v in inputs.items() if k != "position_ids"}


def _score_logits(logits_BAV: Tensor, labels_BA: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
    logprob_BA = token_logprobs(logits_BAV.flatten(0, 1), labels_BA.clamp_min(0).flatten()).view(labels_BA.shape)
    scored_BA = labels_BA != IGNORE
    entropy_BA = token_entropies(logits_BAV).where(scored_BA, 0.0) if entropy else None
    return logprob_BA.where(scored_BA, 0.0), entropy_BA


def _last_hidden(model: Any, *args: Any, **inputs: Any) -> Any:
    """The input of a model's output head, (B, A, D)."""
    if model.base_model is not model:
        return model.base_model(*args, **inputs).last_hidden_state
    # As in T5: encoder and decoder stand beside the head, without a common parent.
    mask_BT = inputs.get("attention_mask")
    encoded = model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=mask_BT).last_hidden_state
    seen = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask_BT}
    own = {"input_ids": inputs["decoder_input_ids"], "attention_mask": inputs.get("decoder_attention_mask")}
    return model.get_decoder()(**own, **seen, use_cache=False).last_hidden_state


def adopt(model: Any) -> Any:
    """Give a transformers model our interface and linear layers. Its class keeps its name, so that it is saved as before.

    A model without weights cannot be probed; it is taken to be like most.
    """
    cls = type(model)
    model.__class__ = type(cls.__name__, (TransformersRows, cls), {"__module__": cls.__module__})
    model.value_head = model.critic = None
    model._position_tables = []
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        if type(module) is nn.Embedding and name.endswith(POSITION_TABLES):
            model._position_tables.append(module)
            module.register_forward_pre_hook(_check_positions)
    if model.device.type == "meta":
        model.packing_is_exact = True
        return model
    model.head_is_exact = head_is_exact(model, _last_hidden)
    if not model.head_is_exact:
        changes = f"{cls.__name__} changes its logits after the output head"
        warnings.warn(f"{changes}: rows are scored from whole logits, which takes more memory", stacklevel=2)
    return model


def _check_positions(table: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise an error of ours for too many positions; that of transformers only mentions an index out of range."""
    positions = inputs[0]
    assert isinstance(table, nn.Embedding)
    # Reading positions is free on a CPU and synchronises a GPU, which is too slow for the single tokens of decoding.
    columns = table.num_embeddings + 1 if positions.device.type == "cpu" else positions.shape[-1]
    check_positions(positions, table, columns)


class TransformersModel:
    """Loads a folder with the right auto class and adopts the model."""

    _keep_in_fp32_modules_strict = ()  # transformers finds its own plan when it loads a folder

    @staticmethod
    def blank(path: Path, config: PretrainedConfig) -> Any:
        """The network that a configuration describes, without memory for its weights."""
        model = adopt(safe_blank(_auto_class(path, config), path, config))
        if head := row_model.configured_value_head(config):
            model.value_head = head.to("meta")
        return model

    @staticmethod
    def from_pretrained(path: Path, config: PretrainedConfig, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        auto = _auto_class(path, config)
        if cut := kwargs.get("distributed_config"):
            kwargs["distributed_config"] = with_plan(cut, config)
        model, info = safe_network(auto, path, config, **kwargs)
        if cut:
            settle_heads(model, cut.tp_size)
        model = adopt(model)
        if head := row_model.configured_value_head(config):
            _load_value_head(head, path, info)
            model.value_head = head.to(model.dtype)
        return model, info


def _auto_class(path: Path, config: PretrainedConfig) -> Any:
    """The auto class of transformers; UnsupportedError if it is not a language model, or needs code of its own."""
    seq2seq = config.is_encoder_decoder
    known: Any = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if seq2seq else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in known:
        unable = f"{path}: a model of type {config.model_type!r}, which transformers has no language model for"
        raise UnsupportedError(own_code(path, read_json(path / "config.json")) or unable)
    return AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM


def _load_value_head(head: row_model.ValueHead, folder: Path, info: dict[str, Any]) -> None:
    """Fill the head from the folder's files; for transformers its tensors were unexpected."""
    wanted = {f"{VALUE_HEAD}.{name}": tensor for name, tensor in head.state_dict().items()}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in wanted.keys() & set(tensors.keys()):
                wanted[name].copy_(tensors.get_tensor(name))
    info["missing_keys"] = [*info["missing_keys"], *sorted(wanted.keys() - set(info["unexpected_keys"]))]
    info["unexpected_keys"] = [name for name in info["unexpected_keys"] if name not in wanted]
