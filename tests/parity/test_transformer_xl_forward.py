"""Transformer-XL against its recordings: logits and memories of every kind of mask, and the parts by themselves."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hanmo.families.transformer_xl.relative import SinusoidTable, relative_scores, visible
from tests.parity.transformer_xl_models import FOLDER, decoder, network
from tests.places import load, needs_parity

pytestmark = needs_parity("transformer_xl")
TOLERANCE, HALF = 1e-4, 0.05  # as its README suggests
CASES = load(FOLDER / "forward" / "index.json")


def named(cases: list[Any]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


def close(ours: Tensor, recorded: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours.float(), recorded.float(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", named([case for case in CASES if "segments" in case]))
@torch.no_grad()
def test_segments(case: dict[str, Any]) -> None:
    """Segment after segment with the memory of the one before, under the recorded masks."""
    arrays = load_file(FOLDER / "forward" / case["file"])
    model = network(case["checkpoint"], memory_length=case["max_memory_length"])
    memory: tuple[Tensor, ...] = ()
    for place, segment in enumerate(case["segments"]):
        names = ("input_ids", "attention_mask", "position_ids")
        inputs = {name: arrays[f"seg{place}.{name}"] for name in names}
        output = model(**inputs, memory=memory)
        memory = output.memory
        close(output.logits, arrays[f"seg{place}.logits"])
        assert len(memory) == segment["n_mems_out"]
        for layer, kept_BmD in enumerate(memory):
            assert kept_BmD.shape[1] == segment["mem_len_out"]
            close(kept_BmD, arrays[f"seg{place}.mems.{layer}"])


def generates(case: dict[str, Any]) -> bool:
    later = [segment["q_len"] for segment in case.get("segments", ())][1:]
    return bool(later) and set(later) == {1}


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("case", named([case for case in CASES if generates(case)]))
@torch.no_grad()
def test_keys_and_values(case: dict[str, Any], together: int) -> None:
    """A prompt, then tokens one by one or several at once: keys and values say what hidden states did."""
    arrays = load_file(FOLDER / "forward" / case["file"])
    model = decoder(case["checkpoint"], case["max_memory_length"])
    ids_RT = arrays["seg0.input_ids"]
    logits, state = model.prefill(ids_RT, torch.ones_like(ids_RT), arrays["seg0.position_ids"])
    close(logits, arrays["seg0.logits"][:, -1:])
    steps = range(1, len(case["segments"]))
    for first in steps[::together]:
        places = range(first, min(first + together, steps.stop))

        def joined(name: str, places: range = places) -> Tensor:
            return torch.cat([arrays[f"seg{place}.{name}"] for place in places], dim=1)

        logits = model.step(joined("input_ids"), joined("position_ids")[:, None], state)
        close(logits, joined("logits"))


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("case", named([case for case in CASES if case["name"].startswith("full_vocab")]))
@torch.no_grad()
def test_full_vocabulary(case: dict[str, Any], kind: str) -> None:
    """Last logits and memories in single precision, and in half precision with half-precision positions."""
    arrays = load_file(FOLDER / "forward" / case["file"])
    for place, (logits, memory) in enumerate(run_full(case, arrays, kind, half_positions=kind == "fp16")):
        tolerance = TOLERANCE if kind == "fp32" else HALF
        close(logits, arrays[f"{kind}.seg{place}.logits_last"], tolerance)
        for layer, kept_BmD in enumerate(memory):
            if (recorded := arrays.get(f"{kind}.seg{place}.mems.{layer}")) is not None:
                close(kept_BmD, recorded, tolerance)
        if (tail := arrays.get(f"{kind}.seg{place}.mems_last_layer_tail8")) is not None:
            close(memory[-1][:, -tail.shape[1] :], tail, tolerance)


def run_full(
    case: dict[str, Any], arrays: dict[str, Tensor], kind: str, half_positions: bool
) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
    dtype = torch.float16 if kind == "fp16" else torch.float32
    length = case["max_memory_length"]
    model = network(case["checkpoint"], dtype, half_positions=half_positions, memory_length=length, segment_length=999)
    memory: tuple[Tensor, ...] = ()
    results = []
    for place in range(sum(name.endswith(".input_ids") for name in arrays)):
        mask = arrays.get(f"seg{place}.attention_mask")
        output = model(input_ids=arrays[f"seg{place}.input_ids"], attention_mask=mask, memory=memory)
        memory = output.memory
        results.append((output.logits[:, -1], memory))
    return results


@pytest.mark.parametrize(
    "case", named([case for case in CASES if "max_abs_logit_diff_fp16_vs_fp32_with_half_position_table" in case])
)
@torch.no_grad()
def test_half_positions_bring_single_precision_near(case: dict[str, Any]) -> None:
    """Single precision with the table in half precision is as near to half precision as recorded."""
    arrays = load_file(FOLDER / "forward" / case["file"])
    for place, (logits, _) in enumerate(run_full(case, arrays, "fp32", half_positions=True)):
        gap = (logits - arrays[f"fp16.seg{place}.logits_last"]).abs().max().item()
        assert gap == pytest.approx(case["max_abs_logit_diff_fp16_vs_fp32_with_half_position_table"][place], abs=2e-4)


@pytest.mark.parametrize("case", named([case for case in CASES if "eod_token" in case]))
@torch.no_grad()
def test_positions_and_masks_that_restart(case: dict[str, Any]) -> None:
    arrays = load_file(FOLDER / "forward" / case["file"])
    inputs = {name: arrays[name] for name in ("input_ids", "attention_mask", "position_ids")}
    close(network(case["checkpoint"])(**inputs).logits, arrays["logits"])


@pytest.mark.parametrize("case", named([case for case in CASES if "mask" in case]))
def test_windows(case: dict[str, Any]) -> None:
    recorded = torch.tensor(case["mask"]).bool()
    queries, columns = recorded.shape
    ours = visible(queries, columns, queries - 1, None, None, recorded.device)
    assert torch.equal(ours[0, 0], recorded)


internals = load_file(FOLDER / "forward" / "internals.safetensors") if (FOLDER / "forward").is_dir() else {}
INTERNALS = [case for case in CASES if case["name"] == "internals"]


@pytest.mark.parametrize(
    ("name", "places", "rows"),
    [
        ("posemb64", "posemb64.pos", "posemb64.out"),
        ("posemb64_fp16", "posemb64_fp16.pos_subset", "posemb64_fp16.out_subset"),
        ("posemb2560_fp16", (767, 511, 300, 1, 0), "posemb2560_fp16.out_pos_767_511_300_1_0"),
    ],
)
def test_sinusoids(name: str, places: str | tuple[int, ...], rows: str) -> None:
    frequencies, recorded = internals[f"{name}.inv_freq"], internals[rows]
    distances = [int(place) for place in (internals[places] if isinstance(places, str) else places)]
    half = frequencies.dtype == torch.float16
    table = SinusoidTable(2 * len(frequencies), half)
    close(table.inv_freq.to(frequencies.dtype), frequencies, 0)
    columns = max(distances) + 1
    ours = table(columns, recorded.dtype)[[columns - 1 - distance for distance in distances]]
    close(ours, recorded[0], 0 if half else 1e-6)


def test_shift() -> None:
    """Position scores alone: no content, and a position table that gives the recorded raw scores back."""
    raw_BHqS, recorded = internals["rel_shift.in"], internals["rel_shift.out"]
    batch, heads, queries, columns = raw_BHqS.shape
    nothing_BHqS = torch.zeros_like(raw_BHqS)
    key_BHSK = torch.zeros(batch, heads, columns, columns)
    table_HSK = torch.eye(columns).expand(heads, -1, -1)
    ours = relative_scores(nothing_BHqS, raw_BHqS, key_BHSK, table_HSK) * columns**0.5
    seen = visible(queries, columns, columns, None, None, ours.device).expand_as(ours)
    close(ours[seen], recorded[seen], 1e-6)


@pytest.mark.parametrize("case", named(INTERNALS))
@torch.no_grad()
def test_one_layer(case: dict[str, Any]) -> None:
    model = network(case["checkpoint"])
    block = model.layers[0]
    hidden, memory, mask = (internals[f"layer0.{name}"] for name in ("hidden_in", "mem", "mask"))
    table_SD = internals["layer0.position_embeddings"][0]
    close(table_SD, model.positions(len(table_SD), torch.float32), 1e-6)
    rest = (mask.bool(), (model.r_w_bias, model.r_r_bias, lambda columns: table_SD))
    joined_BSD = block.attention_norm(torch.cat([memory, hidden], dim=1))
    close(block.attention(joined_BSD, hidden.shape[1], *rest, None, 0), internals["layer0.attention_out"])
    close(block(hidden, memory, *rest), internals["layer0.hidden_out"])
    close(block.activation(internals["gelu.in"]), internals["gelu.out"], 1e-6)
    inner = block.down_proj(block.activation(block.up_proj(internals["layer0.mlp_in"])))
    close(inner, internals["layer0.mlp_out"])
