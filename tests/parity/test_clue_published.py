"""The published CLUE protocol against its recordings: prompts, ids, draws, scores, accuracies, CMRC.

Records are written to files in CLUE's layout and read back, so that reading is held to the recordings as well.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hanmo.errors import HanmoError
from hanmo.evaluation.suites import cmrc
from hanmo.evaluation.suites.clue import published_scores
from hanmo.evaluation.suites.clue import suite as published
from hanmo.evaluation.suites.clue.suite import CandidatePrompt, clue_suite
from hanmo.evaluation.suites.clue.tasks import all_tasks, read_split
from hanmo.evaluation.suites.runner import evaluate
from hanmo.evaluation.suites.suite import Example, Options
from hanmo.families.base import OpenedModel
from hanmo.families.glm.family import GlmFamily
from hanmo.families.glm.modeling import GlmConfig
from hanmo.families.glm.tokenization import GlmTokenizer
from hanmo.families.pangu.family import PanguFamily
from hanmo.families.pangu.modeling import PanguConfig
from hanmo.families.pangu.tokenization import PanguTokenizer
from hanmo.losses import token_logprobs
from tests.places import PARITY, VOCAB, load, needs_parity

pytestmark = needs_parity("clue")
CASES = PARITY / "clue/cases"
TASKS = [name for name in all_tasks() if (CASES / f"{name}.json").is_file()]
SCORING = load(CASES / "scoring.json", {"ppl_cases": [], "aggregation_cases": []})
CMRC = load(CASES / "cmrc_f1.json", {"cases": [], "main_run": {}})
FOUND = {name: load(CASES / f"{name}.json") for name in TASKS}
SHOTS = [(name, key) for name in TASKS for key in FOUND[name] if key.startswith("few_shot_")]
SCORES = [(name, model) for name in TASKS for model in FOUND[name].get("scores", {})]
VOCABULARY = {"pangu": 40000, "glm": 50048}


class Formula:
    """The recorded runs had a formula in place of the model: logits of id, token and position."""

    training, device, dtype = False, torch.device("cpu"), torch.float32

    def state_dict(self) -> dict[str, Any]:
        return {"vocabulary": torch.tensor(self.vocabulary)}

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def eval(self) -> None: ...
    def train(self, mode: bool) -> None: ...

    def __call__(self, input_ids: Any, **inputs: Any) -> Any:
        ids, place = input_ids[:, :, None], torch.arange(input_ids.shape[1])[:, None]
        token = torch.arange(self.vocabulary)
        logits = 10 * ((37 * ids + 101 * token + 13 * place) % 39989).double() / 39988
        return SimpleNamespace(logits=logits.float())


@pytest.fixture(scope="module")
def models() -> dict[str, OpenedModel]:
    pangu, glm = PanguConfig(), GlmConfig()
    return {
        "pangu": OpenedModel(
            Formula(VOCABULARY["pangu"]),
            PanguFamily(pangu, PanguTokenizer(str(VOCAB / "pangu/vocab.model"))),
            "formula",
        ),
        "glm": OpenedModel(
            Formula(VOCABULARY["glm"]), GlmFamily(glm, GlmTokenizer(str(VOCAB / "cog-pretrain.model"))), "formula"
        ),
    }


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Example]]:
    data = tmp_path_factory.mktemp("clue")
    made: dict[str, list[Example]] = {}

    def read(name: str) -> list[Example]:
        if name not in made:
            case, folder = FOUND[name], data / name
            folder.mkdir()
            lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in case["records"])
            document = all_tasks()[name].layout in ("dialogues", "passages")
            (folder / "dev.json").write_text(json.dumps(case["records"], ensure_ascii=False) if document else lines)
            if "dev_answer" in case:
                (folder / "dev_answer.json").write_text(json.dumps(case["dev_answer"]))
                (folder / "train_answer.json").write_text("{}")
            made[name] = read_split(all_tasks()[name], data, "dev")
        return made[name]

    return read


def items_of(name: str, examples: list[Example]) -> list[CandidatePrompt]:
    return published.build_prompts(all_tasks()[name], examples, recorded_draws(name))


def recorded_draws(name: str) -> list[tuple[str, ...]] | None:
    if not all_tasks()[name].published.drawn:
        return None
    case = FOUND[name]
    firsts = [case["zero_shot"]["items"][group["first_item"]] for group in case["zero_shot"]["groups"]]
    return [tuple(item["candidates"]) for item in firsts]


@pytest.mark.parametrize("name", TASKS)
def test_prompts_labels_and_ids(name: str, examples: Any, models: dict[str, OpenedModel]) -> None:
    case, task = FOUND[name]["zero_shot"], all_tasks()[name]
    if task.generates:
        prompts = [task.published.template.fill(example.fields, "") for example in examples(name)]
        for example, expected in zip(examples(name), case["items"], strict=True):
            assert list(example.answers) == [one["text"] for one in expected["label"]]
    else:
        items = items_of(name, examples(name))
        prompts = [item.text for item in items]
        for item, expected in zip(items, case["items"], strict=True):
            assert item.label == expected["label"]
            assert list(item.candidates) == expected.get("candidates", list(item.candidates))
    assert prompts == [item["prompt"] for item in case["items"]]
    for model, opened in models.items():
        for prompt, item in zip(prompts, case["items"], strict=True):
            assert published_scores.encode(opened, prompt, case["max_length"]) == item[f"{model}_ids"]


@pytest.mark.parametrize("name", [name for name in TASKS if not all_tasks()[name].generates])
def test_groups_are_the_records_questions(name: str, examples: Any) -> None:
    items = items_of(name, examples(name))
    for number, group in enumerate(FOUND[name]["zero_shot"]["groups"]):
        members = range(group["first_item"], group["first_item"] + group["n"])
        assert {items[member].example for member in members} == {number}
        if group["n"] > 1:
            assert items[members[0]].candidates.index(items[members[0]].label) == group["gold_index"]


@pytest.mark.parametrize(("name", "key"), SHOTS)
def test_drawn_examples(name: str, key: str, examples: Any, models: dict[str, OpenedModel]) -> None:
    case, task = FOUND[name][key], all_tasks()[name]
    opened = models["pangu" if "pangu" in key else "glm"]
    items, rng = items_of(name, examples(name)), Random(case["seed"])
    pool = [item.text for item in items]
    if task.published.drawn:
        published.draw_candidates(task, examples(name), rng)  # the original drew before, from a set
        pool = case["labelled_list"]
    again = Random()
    again.setstate(rng.getstate())
    texts = [item.text for item in items]
    prompts = published.add_shots(opened.family, texts, pool, case["max_few_shot"], rng, case["max_length"])
    for text, prompt, expected in zip(texts, prompts, case["items"], strict=True):
        drawn = again.sample(range(len(pool)), min(len(pool), case["max_few_shot"]))
        assert drawn == expected["drawn"]
        assert prompt == "\n".join([*(pool[index] for index in drawn[: expected["kept"]]), text])
        assert prompt == expected["prompt"]
        assert len(published_scores.encode(opened, prompt, case["max_length"])) == expected["n_tokens"]
    assert again.getstate() == rng.getstate()


@pytest.mark.parametrize("name", load(CASES / "fewshot_pangu_budget.json", {}))
def test_the_budget_cuts_off_what_is_scored(name: str, examples: Any, models: dict[str, OpenedModel]) -> None:
    """The recorded run is the one of the task's other recordings: 15 examples, 512 tokens."""
    family, task = models["pangu"].family, all_tasks()[name]
    items, rng = items_of(name, examples(name)), Random(published.SEED)
    pool = [item.text for item in items]
    if task.published.drawn:
        published.draw_candidates(task, examples(name), rng)
        pool = next(FOUND[name][key]["labelled_list"] for key in FOUND[name] if key.startswith("few_shot_"))
    texts = [item.text for item in items]
    prompts = published.add_shots(family, texts, pool, 15, rng, published_scores.MAX_LENGTH)
    for prompt, item, expected in zip(prompts, items, load(CASES / "fewshot_pangu_budget.json")[name], strict=True):
        assert family.published_length(prompt) == expected["n_jieba_words_full_prompt"]
        whole = len(family.tokenizer(prompt)["input_ids"])
        kept = len(published_scores.encode(models["pangu"], prompt))
        assert (whole, kept) == (expected["n_ids_untruncated"], expected["n_ids_kept"])
        assert whole - kept == expected["ids_removed_from_the_end"]
        assert (whole > kept) == expected["candidate_tail_cut"]
        own = len(family.tokenizer.encode(item.text, add_special_tokens=False))
        assert own == expected["n_ids_of_own_prompt"]


def without_rounding(logits_TV: torch.Tensor, ids_T: torch.Tensor, pad_id: int) -> float:
    """The published formula in fp64."""
    twice_TV = logits_TV[: len(ids_T)].double().softmax(-1).softmax(-1)
    logprob_T = twice_TV.gather(-1, ids_T[:, None])[:, 0].log()
    return (-logprob_T[ids_T != pad_id].mean()).exp().item()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), SCORES)
def test_scores_and_accuracies(
    name: str, model: str, examples: Any, models: dict[str, OpenedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = FOUND[name]["scores"][model]
    items = items_of(name, examples(name))[: case["n_items_scored"]]
    prompts = [item.text for item in items]
    exact, score_of = [], published_scores.published_score

    def scored(*of_prompt: Any) -> Any:
        exact.append(without_rounding(*of_prompt))
        return score_of(*of_prompt)

    monkeypatch.setattr(published_scores, "published_score", scored)
    found = dict(published_scores.score_prompts(models[model], prompts, case["run_max_length"]))
    scores = [found[index] for index in range(len(items))]
    in_order = dict(zip(found, exact, strict=True))
    assert [in_order[index] for index in range(len(items))] == pytest.approx(case["same_formula_float64"], abs=1e-3)
    assert [score.ppl for score in scores] == pytest.approx(
        case["original_ppl_float32"], abs={"pangu": 0.2, "glm": 2}[model]
    )
    right, _ = published.accuracy(case["original_ppl_float32"], items)
    assert f"ppl={sum(right) / len(right)}" == case["printed"]
    nll = [score.nll for score in scores]
    assert nll == pytest.approx(case["corrected_shifted_mean_nll"], abs=1e-5)
    if "corrected_accuracy" in case:
        groups = FOUND[name]["zero_shot"]["groups"][: case["corrected_groups"]]
        hits = 0
        for group in groups:
            of_group = nll[group["first_item"] : group["first_item"] + group["n"]]
            hits += of_group.index(min(of_group)) == group["gold_index"]
        assert hits / len(groups) == pytest.approx(case["corrected_accuracy"])


@pytest.mark.parametrize("case", SCORING["ppl_cases"], ids=lambda case: f"pad{case['pad_id']}")
def test_scores_of_small_logits(case: dict[str, Any]) -> None:
    for logits, labels, expected, corrected in zip(
        case["logits"], case["labels"], case["original_ppl"], case["corrected_shifted"], strict=True
    ):
        while labels[-1] == case["pad_id"]:  # we never see the padding
            labels.pop()
        logits_TV, ids_T = torch.tensor(logits)[: len(labels)], torch.tensor(labels)
        score = published_scores.published_score(logits_TV, ids_T, case["pad_id"])
        assert score.ppl == pytest.approx(expected, rel=1e-5)
        assert without_rounding(logits_TV, ids_T, case["pad_id"]) == pytest.approx(expected, rel=1e-5)
        assert score.nll == pytest.approx(corrected["sum_nll"] / corrected["n"], rel=1e-5)
        assert math.exp(score.nll) == pytest.approx(corrected["ppl"], rel=1e-5)
        once = token_logprobs(logits_TV, ids_T)
        place = case["original_ppl"].index(expected)
        assert (-once.mean()).exp().item() == pytest.approx(case["single_softmax_unshifted_ppl"][place], rel=1e-5)


@pytest.mark.parametrize("case", SCORING["aggregation_cases"], ids=lambda case: case["kind"])
def test_aggregation(case: dict[str, Any]) -> None:
    items = [
        CandidatePrompt("", label, tuple(names), 0)
        for label, names in zip(case["label"], case["candidates"], strict=True)
    ]
    original = case["original"]
    if original["error"]:
        with pytest.raises(HanmoError, match="out of step"):
            published.accuracy(case["ppl"], items)
        return
    right, _ = published.accuracy(case["ppl"], items)
    assert (sum(right), len(right)) == (original["correct"], original["groups"])
    assert sum(right) / len(right) == pytest.approx(original["acc"])


@pytest.mark.parametrize("case", CMRC["cases"], ids=range(len(CMRC["cases"])))
def test_cmrc_metrics(case: dict[str, Any], models: dict[str, OpenedModel]) -> None:
    for model, opened in models.items():
        value, same = published_scores.token_f1(opened.family, case["prediction"], case["references"])
        assert value == pytest.approx(case[f"f1_{model}"], abs=1e-12)
        assert same == case["em"]
    assert cmrc.f1(case["prediction"], case["references"]) == pytest.approx(case["official_cmrc_f1"], abs=1e-12)
    assert cmrc.exact(case["prediction"], case["references"]) == case["official_cmrc_em"]


@pytest.mark.parametrize("model", CMRC["main_run"])
def test_cmrc_reads_the_answer_out_of_the_output(model: str, examples: Any, models: dict[str, OpenedModel]) -> None:
    """The recorded network said the tokens of the first answer."""
    family, task = models[model].family, all_tasks()["cmrc2018"]
    run, expected = CMRC["main_run"][model], {}
    for row in CMRC["main_run"][model]["rows"]:
        expected.setdefault(row["pred"], row)
    values, exact = [], []
    for place, example in enumerate(examples("cmrc2018")):
        prompt = task.published.template.fill(example.fields, "")
        context = family.prompt(family.context(published_scores.Text(prompt + family.blank), 10**6).ids).inputs[
            "input_ids"
        ]
        if place < len(run["generate_calls"]):
            call = run["generate_calls"][place]
            assert len(context) == call["input_len"]
            assert context[-len(call["tail_ids"]) :].tolist() == call["tail_ids"]
            assert context[: len(call["head_ids"])].tolist() == call["head_ids"]
        said = family.tokenizer.encode(example.answers[0], add_special_tokens=False)
        prediction = published_scores.after_answer(family.decode([*context.tolist(), *said]))
        assert prediction in expected
        value, same = published_scores.token_f1(family, prediction, example.answers)
        values.append(value)
        exact.append(same)
    printed = f"em={sum(exact) / len(exact)}, f1={sum(values) / len(values)}"
    assert [printed] == run["printed"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), [pair for pair in SCORES if pair[0] in ("tnews", "afqmc", "cluewsc2020")])
def test_a_whole_run_prints_the_recorded_accuracy(
    name: str, model: str, examples: Any, models: dict[str, OpenedModel], tmp_path: Path
) -> None:
    """From files and a file of candidates to the accuracy. Scores closer than fp32 can tell may fall either way."""
    found, case = examples(name), FOUND[name]["scores"][model]
    draws = recorded_draws(name)
    wrong = None
    if draws is not None:
        wrong = tmp_path / "candidates.json"
        wrong.write_text(json.dumps({name: {"candidates": draws}}, ensure_ascii=False), encoding="utf-8")
    options = Options(published=True, limit=case["run_max_length"], candidates=wrong)
    data = Path(found[0].where).parent.parent
    result = evaluate(models[model], clue_suite(data, [name]), options, tmp_path, lambda what: lambda done, total: None)
    (task,) = result.tasks
    expected = float(case["printed"].removeprefix("ppl="))
    unsure = 0
    size = len(items_of(name, found)[0].candidates)
    for start in range(0, len(case["original_ppl_float32"]) - size + 1, size):
        best = sorted(case["original_ppl_float32"][start : start + size])
        unsure += best[1] - best[0] < 0.2
    assert abs(task.value - expected) <= unsure / len(task.right["published"])
    assert "own draw" not in " ".join(task.notes)
    assert result.about["protocol"] == "published"


def test_candidates_that_do_not_fit_are_refused(examples: Any, tmp_path: Path) -> None:
    found, task, path = examples("tnews"), all_tasks()["tnews"], tmp_path / "candidates.json"
    for content, message in (
        ("{", "expected a JSON file"),
        ("{}", "no lists of candidates for tnews"),
        (json.dumps({"tnews": {"candidates": []}}), "0 lists of candidates"),
        (json.dumps({"tnews": {"candidates": [["什么"]] * len(found)}}), "first, then other names of labels"),
    ):
        path.write_text(content)
        with pytest.raises(HanmoError, match=message):
            published.read_candidates(path, task, found)
