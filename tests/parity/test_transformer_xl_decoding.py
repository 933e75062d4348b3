"""Recorded decoding: greedy sequences, replayed draws, filters, the beam scorer, perplexity token by token."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hanmo.families.base import OpenedModel
from hanmo.families.decoding import SearchConventions
from hanmo.families.transformer_xl.family import TransformerXLFamily
from hanmo.families.transformer_xl.modeling import TransformerXLModel
from hanmo.families.transformer_xl.relative import visible
from hanmo.generation.beam import BeamSearch
from hanmo.generation.decode import generate
from hanmo.generation.processors import top_k, top_p
from hanmo.generation.settings import Settings
from hanmo.records import PromptResponse, Text
from hanmo.rows import Context, collate
from tests.parity.transformer_xl_models import FOLDER, decoder, family, network
from tests.places import load, needs_parity
from tests.searching import drawing

pytestmark = needs_parity("transformer_xl")
DECODE = FOLDER / "decode"
STOP = 50000
GREEDY = load(DECODE / "greedy.json")
ONE_TURN = [case for case in GREEDY if "turn1" not in case]
TWO_TURNS = [case for case in GREEDY if "turn1" in case]
FILE_RUN = load(DECODE / "cli_file_run.json")
PROBABILITY = 1e-5


def opened(model: TransformerXLModel, stop: int = STOP) -> OpenedModel:
    """A network under a vocabulary of which only the stop token matters, as ids go in and come out."""
    vocabulary = SimpleNamespace(eos_token_id=stop)
    return OpenedModel(model, TransformerXLFamily(model.config, vocabulary), "recorded")  # type: ignore[arg-type]


def recorded_model(case: dict[str, Any]) -> TransformerXLModel:
    half = "(fp16" in case["checkpoint"]
    dtype = torch.float16 if half else torch.float32
    return decoder(case["checkpoint"], case["effective_memory"], dtype=dtype, half_positions=half)


def greedily(room: int) -> Settings:
    return Settings(max_new_tokens=room, do_sample=False, published=True)


def context(ids: Sequence[int]) -> Context:
    return Context(tuple(ids), tuple(ids))


@pytest.mark.parametrize("case", ONE_TURN, ids=lambda case: f"{case['kind'][:20]}-{len(case['output_ids'])}")
def test_greedy(case: dict[str, Any]) -> None:
    prompt, output = case["prompt_ids"], case["output_ids"]
    room = case["out_seq_length"] - len(prompt)
    if room <= 0:  # nothing to say: our settings refuse such a length before a model is asked
        assert output == prompt
        return
    model = opened(recorded_model(case), case.get("end_token", STOP))
    [said] = generate(model, [context(prompt)], greedily(room))
    assert list(said.ids) == output[len(prompt) :]
    assert said.finished == (len(output) < case["out_seq_length"])
    if "decoded" in case:
        assert family(model.network.config).decode(output) == case["decoded"]


def test_greedy_together() -> None:
    """Prompts of different lengths in one batch, filled up on the left, say what they say alone."""
    groups: dict[tuple[str, int, int], list[Any]] = {}
    for case in ONE_TURN:
        if "(fp16" not in case.get("checkpoint", "(fp16"):
            room = case["out_seq_length"] - len(case["prompt_ids"])
            groups.setdefault((case["checkpoint"], case["effective_memory"], room > 0), []).append(case)
    compared = 0
    for (_, _, says), cases in groups.items():
        if says and len(cases) > 1:
            longest = max(case["out_seq_length"] - len(case["prompt_ids"]) for case in cases)
            contexts = [context(case["prompt_ids"]) for case in cases]
            for case, said in zip(
                cases, generate(opened(recorded_model(cases[0])), contexts, greedily(longest)), strict=True
            ):
                generated = case["output_ids"][len(case["prompt_ids"]) :]
                assert list(said.ids[: len(generated)]) == generated
                compared += 1
    if not compared:
        pytest.skip("no two recorded prompts share a checkpoint and a memory")


def test_a_file_of_prompts() -> None:
    """What the original wrote for a file: a line's prompt as typed, then the decoded whole from that many characters on."""
    options, lines = FILE_RUN["options"], FILE_RUN["input_lines"]
    model = decoder(FILE_RUN["checkpoint"].split()[0], options["effective_memory"])
    ours = OpenedModel(model, family(model.config), "recorded")
    settings = Settings(temperature=options["temperature"], top_k=options["top_k"], top_p=0.0, published=True)
    written = ""
    for line in lines[: lines.index("")]:  # the original stops reading at a blank line
        prompt = ours.family.context(Text(line), options["seq_length"])
        room = options["out_seq_length"] - len(prompt.ids)
        [said] = generate(ours, [prompt], settings.change(max_new_tokens=room))
        written += line + ours.family.decode([*prompt.ids, *said.ids])[len(line) :] + "\n"
    assert written == FILE_RUN["output_file_text"]


@pytest.mark.parametrize("case", TWO_TURNS, ids=lambda case: case["kind"])
@torch.no_grad()
def test_two_turns(case: dict[str, Any]) -> None:
    """The memory of the first turn goes into the second, whose prompt is read under the published window."""
    model = network(case["checkpoint"], memory_length=case["effective_memory"])
    memory: tuple[Tensor, ...] = ()
    for turn in (case["turn1"], case["turn2"]):
        ids, feed = list(turn["prompt_ids"]), list(turn["prompt_ids"])
        while len(ids) < turn["out_seq_length"]:
            width = (memory[0].shape[1] if memory else 0) + len(feed)
            span = width if len(feed) == 1 else len(feed) - 1  # a prompt sees its own length of keys, a token all
            mask = visible(len(feed), width, span, None, None, torch.device("cpu"))
            output = model(input_ids=torch.tensor([feed]), attention_mask=mask, memory=memory)
            memory = output.memory
            feed = [int(output.logits[0, -1].argmax())]
            ids += feed
        assert ids == turn["output_ids"]
        assert memory[0].shape[1] == turn["mem_len"]


@pytest.mark.parametrize("case", load(DECODE / "sampled_paths.json"), ids=lambda case: f"case{case['case']}")
def test_sampled_paths(case: dict[str, Any]) -> None:
    """Probabilities after temperature and filters along a recorded path."""
    arrays, stop = load_file(DECODE / "sampled_paths.safetensors"), case.get("end_token", STOP)
    probs_SV, path = arrays[f"case{case['case']}.probs"], case["output_ids"][len(case["prompt_ids"]) :]
    steps = path.index(stop) + 1 if stop in path else len(path)
    seen = []

    def replay(step: int, samples: Sequence[int], probs: Tensor, count: int) -> Tensor:
        torch.testing.assert_close(probs[0], probs_SV[step], atol=PROBABILITY, rtol=0)
        assert int((probs > 0).sum()) == case["kept"][step]
        seen.append(step)
        return torch.tensor([[path[step]]])

    settings = Settings(
        max_new_tokens=len(path),
        temperature=case["temperature"],
        top_k=case["top_k"],
        top_p=case["top_p"],
        published=True,
    )
    with drawing(replay):
        generate(opened(recorded_model(case), stop), [context(case["prompt_ids"])], settings)
    assert seen == list(range(steps)) and seen


@pytest.mark.parametrize("case", load(DECODE / "filter_cases.json"), ids=lambda case: str(case["id"]))
def test_filters(case: dict[str, Any]) -> None:
    arrays = load_file(DECODE / "filter_cases.safetensors")
    scores_RV = arrays[f"logits.{case['logits']}"] / case["temperature"]
    probs_RV = top_p(top_k(scores_RV, case["top_k"]), case["top_p"]).softmax(-1)
    torch.testing.assert_close(probs_RV, arrays[f"{case['id']}.probs"], atol=1e-6, rtol=0)
    assert probs_RV[0].nonzero()[:, 0].tolist() == sorted(case["kept_indices"])


@pytest.mark.parametrize("case", load(DECODE / "beam_scorer.json"), ids=lambda case: f"{case['num_beams']}-beams")
def test_beam_scorer(case: dict[str, Any]) -> None:
    """The unused beam scorer of the original is a form of ours: lengths with the prompt, no look ahead."""
    beams, stop = case["num_beams"], case["eos"]
    prompts = case["steps"][0]["input_ids"][::beams]
    settings = Settings(
        num_beams=beams,
        length_penalty=case["length_penalty"],
        early_stopping=case["early_stopping"],
        max_new_tokens=case["max_length"],
    )
    form = SearchConventions(length="with_prompt", lookahead=0, stop_is_open=True)
    search = BeamSearch(case["batch_size"], settings, form, [stop], prompt_width=len(prompts[0]))
    for step in case["steps"]:
        live = list(search.live)
        said = [[step[name][sample] for sample in live] for name in ("next_indices", "next_tokens", "next_scores")]
        parents, tokens = search.advance(*said)
        assert search.done == step["done"]
        going = [sample for sample in live if not search.done[sample]]
        for place, sample in enumerate(going):
            here, there = slice(place * beams, (place + 1) * beams), slice(sample * beams, (sample + 1) * beams)
            first = live.index(sample) * beams
            assert tokens[here] == step["out_tokens"][there]
            # The recording counts rows over all samples, finished ones too.
            assert [row - first for row in parents[here]] == [
                row - sample * beams for row in step["out_indices"][there]
            ]
            assert search.totals[here] == pytest.approx(step["out_scores"][there])
    kept = case["num_beam_hyps_to_keep"]
    for sample, found in enumerate(search.results()):
        recorded = sorted(case["hypotheses"][sample], reverse=True)
        assert [[*prompts[sample], *one.ids] for one in found] == [ids for _, ids in recorded]
        assert [one.score for one in found] == pytest.approx([score for score, _ in recorded])
        for one, decoded in zip(found, case["decoded"][sample * kept :][:kept], strict=False):
            whole = [*prompts[sample], *one.ids]
            whole += [stop] * (len(whole) < case["max_length"])
            assert decoded == whole + [case["pad"]] * (len(decoded) - len(whole))


@pytest.mark.parametrize(
    "case",
    load(FOLDER / "perplexity" / "cases.json", {"cases": []})["cases"],
    ids=lambda case: f"{case['seq_length']}-{case['temperature']}-{case['top_k']}",
)
@torch.no_grad()
def test_perplexity(case: dict[str, Any]) -> None:
    """Teacher forcing, all samples in one batch: the recorded log-probabilities, sums and perplexities."""
    model = decoder(case["checkpoint"], case["effective_memory"])
    speaker = family(model.config)
    rows, samples = [], case["samples"]
    for sample in samples:
        record = PromptResponse(sample["sample"]["prompt"], sample["sample"]["text"])
        [parts] = speaker.parts(record, 10**9)
        ids = [id_ for part in parts for id_ in part.ids]
        assert [*ids, STOP] == [*sample["context_ids"], *sample["eval_ids"]]
        rows.append(speaker.row(parts))
    plain = case["temperature"] == 1 and not case["top_k"] and not case["top_p"]
    batch = collate(rows, speaker.padding)
    scores = model(**batch).logprob if plain else filtered(model, batch, case)
    total = count = 0.0
    for row, sample, score_A in zip(rows, samples, scores, strict=True):
        logprobs = score_A[: len(row.labels)][row.weights > 0]
        recorded = [float(value) for value in sample["token_logprobs"]]
        assert logprobs.tolist() == pytest.approx(recorded, abs=2e-4)
        assert len(logprobs) == sample["eval_length"]
        total, count = total + float(logprobs.double().sum()), count + len(logprobs)
        for ours, theirs in ((-float(logprobs.sum()) / len(logprobs), "ppl"), (-total / count, "running_ppl")):
            assert (math.inf if ours == math.inf else math.exp(ours)) == pytest.approx(float(sample[theirs]), rel=1e-4)


def filtered(model: TransformerXLModel, batch: dict[str, Tensor], case: dict[str, Any]) -> Tensor:
    """The original's reading: log p after temperature and filters."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "weights")}
    scores_BAV = model(**inputs).logits / case["temperature"]
    logprobs_BAV = top_p(top_k(scores_BAV, case["top_k"]), case["top_p"]).log_softmax(-1)
    return logprobs_BAV.gather(-1, batch["labels"].clamp_min(0)[..., None])[..., 0]
