"""Recorded runs of the originals over several ranks against ours: run by test_two_ranks.py, in as many processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hanmo.families.base import OpenedModel
from hanmo.families.glm import original_format as glm
from hanmo.families.transformer_xl import original_format as transformer_xl
from hanmo.families.weight_map import TensorMapping, expand
from hanmo.generation.decode import generate
from hanmo.nn.tensor_parallel import local
from tests.originals import network as open_network
from tests.parity import eva_models, transformer_xl_models
from tests.parity.eva_original import entries, original_logits
from tests.parity.test_eva_decoding import ORIGINAL
from tests.parity.test_eva_forward import CLOSE, padded_inputs
from tests.places import PARITY, load
from tests.ranks import RANKS

EVA, XL, GLM = (PARITY / family for family in ("eva", "transformer_xl", "glm"))
RUNS = load(EVA / "mp.json", {})


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def of_this_rank(network: Any, names: list[TensorMapping], kind: str = "weight") -> dict[str, Tensor]:
    """This rank's slices, or those of the gradients, under the original's names and fused as there."""
    tensors = {name: local(tensor if kind == "weight" else tensor.grad) for name, tensor in network.named_parameters()}
    return {
        entry.theirs: torch.cat([tensors[name] for name in entry.ours]) for entry in names if entry.ours[0] in tensors
    }


def split_eva(run: dict[str, Any], rules: str | None = None) -> OpenedModel:
    split = eva_models.MODELS[run["model"]]["mp_checkpoints"][str(run["mp"])]
    return eva_models.opened(run["model"], rules, split)


runs = pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["mp"] == RANKS])


@runs
def test_eva_holds_what_the_originals_ranks_held(name: str) -> None:
    network = split_eva(RUNS[name]).network
    shapes = {
        key: list(tensor.shape) for key, tensor in of_this_rank(network, entries(network.config, "megatron")).items()
    }
    assert shapes == RUNS[name]["rank_param_shapes"]


@runs
@torch.no_grad()
def test_eva_logits(name: str) -> None:
    run = RUNS[name]
    recorded = load_file(EVA / f"forward_{run['model']}.safetensors")
    logits = original_logits(split_eva(run).network, **padded_inputs(run["model"]))
    torch.testing.assert_close(
        logits[:, :, recorded["padded/logits_columns"]], recorded["padded/lm_logits_at_columns"], **CLOSE
    )
    token_loss = logits.logsumexp(-1) - logits.gather(-1, recorded["padded/labels"][..., None]).squeeze(-1)
    torch.testing.assert_close(token_loss, recorded["padded/token_loss"], **CLOSE)


@runs
def test_eva_replies(name: str) -> None:
    run = RUNS[name]
    same = {case for case, _ in run["decode_same_as_mp1"]}
    cases = [case for model, case in ORIGINAL if model == run["model"] and case["id"] in same]
    assert len(cases) == len(same)
    opened = {rules: split_eva(run, rules) for rules in dict.fromkeys(case["args"]["rule_path"] for case in cases)}
    for case in cases:
        eva = opened[case["args"]["rule_path"]]
        said = generate(eva, eva_models.contexts(case, eva.tokenizer), eva_models.settings(case["args"]))
        assert [list(one.ids) for one in said] == case["output_ids"], case["id"]


XL_FILE = XL / "model_parallel" / f"mp{RANKS}.safetensors"
needs_xl = pytest.mark.skipif(not XL_FILE.is_file(), reason=f"no {XL_FILE}")


def split_transformer_xl(**changes: Any) -> Any:
    checkpoint = load(XL / "model_parallel" / "info.json")["setup"]["checkpoint"].split()[0]
    return transformer_xl_models.network(f"{checkpoint}_MP{RANKS}" if RANKS > 1 else checkpoint, **changes)


@needs_xl
@torch.no_grad()
def test_transformer_xl_segments() -> None:
    """Segment after segment under the original's window: a query sees as many tokens as a segment has."""
    recorded = load_file(XL_FILE)
    segments = sum(name.endswith(".logits") for name in recorded)
    kept = recorded[f"seg{segments - 1}.mems.0"].shape[1]
    network, memory = split_transformer_xl(memory_length=kept), ()
    for place in range(segments):
        ids_BT = recorded[f"seg{place}.input_ids"]
        output = network(input_ids=ids_BT, memory=memory, reach=torch.full_like(ids_BT, ids_BT.shape[1] - 1))
        memory = output.memory
        near(output.logits, recorded[f"seg{place}.logits"])
    for layer, memory_BmD in enumerate(memory):
        near(memory_BmD, recorded[f"seg{segments - 1}.mems.{layer}"])


def near(ours: Tensor, recorded: Tensor) -> None:
    torch.testing.assert_close(ours, recorded, atol=1e-4, rtol=0)


@needs_xl
def test_transformer_xl_losses_and_gradients() -> None:
    """Each rank's slice of the gradients, and the norm that counts slices once and what is whole once."""
    recorded = load_file(XL_FILE)
    network = split_transformer_xl()
    output = network(input_ids=recorded["loss.input_ids"], labels=recorded["loss.labels"])
    near(-output.logprob, recorded["loss.per_token"])
    output.loss.backward()
    layout = transformer_xl.RELATIVE.entries
    ours = of_this_rank(network, expand(layout, network.config), "gradient")
    names = [name for name in recorded if name.startswith(f"grad_rank{rank()}.")]
    assert names
    for name in names:
        gradient = ours[name.partition(".")[2]]
        torch.testing.assert_close(
            gradient, recorded[name], atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    norms = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in network.parameters()]
    torch.testing.assert_close(
        torch.stack([n.norm() for n in norms]).norm(), recorded["loss.grad_norm"], atol=0, rtol=1e-5
    )


@pytest.mark.skipif(not (GLM / "megatron" / f"ckpt_MP{RANKS}").is_dir(), reason="no split of as many ranks")
@torch.no_grad()
def test_glm_logits(tmp_path: Path) -> None:
    cases = load(GLM / "megatron" / "cases.json")
    arrays = np.load(GLM / "megatron" / cases["arrays"])
    (tmp_path / "config.json").write_text(json.dumps(cases["config"]))
    network = open_network(GLM / "megatron" / f"ckpt_MP{RANKS}", tmp_path / "config.json")
    rows = network.config.vocab_size // RANKS
    assert (
        of_this_rank(network, expand(glm.MEGATRON.entries, network.config))["word_embeddings.weight"].shape[0] == rows
    )
    compared = 0
    for case in cases["forward"]:
        inputs = {key: torch.from_numpy(arrays[f"{case['id']}/in/{key}"]).long() for key in case["inputs"]}
        mask = inputs.pop("attention_mask", None)
        if mask is None or mask.dim() > 1:
            continue
        logits = network(**inputs, prefix=mask).logits
        assert (logits - torch.from_numpy(arrays[f"{case['id']}/logits"])).abs().max() < 2e-4, case["id"]
        compared += 1
    assert compared
