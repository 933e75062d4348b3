"""Rewards: what functions are given, how several are added, and what stops a run whose reward fails."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from hanmo.config import dump, load
from hanmo.errors import ConfigError
from hanmo.records import iter_records, write_records
from hanmo.training.callbacks import read_metrics
from hanmo.training.rl.rewards import Rewards, load_reward, read_specs
from hanmo.training.stages.grpo import GrpoConfig, grpo
from tests.unit.alignment_cases import said, starts, trainer
from tests.unit.judging import BAD
from tests.unit.test_training_policy import small

HERE = "tests.unit.judging"
REPLIES = [said("问", "好", f"data.jsonl:{line}", level=line) for line in (1, 2)]
MIXED = [*REPLIES, said("问", f"很{BAD}", "data.jsonl:7", level=7), said("问", "好", "data.jsonl:9", level=9)]


def reward(name: Any, seconds: float = 60.0, process: bool = False) -> Any:
    opened: Any = None  # functions need no model
    return load_reward(*read_specs([name]), opened, 32, None, 8, seconds, process)


def function(name: str, /, **entry: Any) -> dict[str, Any]:
    return {"reward": f"{HERE}:{name}", **entry}


FOUR = trainer(per_device_train_batch_size=4, learning_rate=1e-3)

# What a function gets


@pytest.mark.parametrize("process", [False, True])
def test_a_function_gets_records_if_it_takes_them(process: bool) -> None:
    """As its third argument or by the name ``records``, with the options of its entry."""
    assert reward(function("third", times=2), process=process)(REPLIES) == [2.0, 4.0]
    assert reward(function("by_name", times=3), process=process)(REPLIES) == [3.0, 6.0]
    assert reward(function("two"), process=process)(REPLIES) == [2.0, 2.0]


def test_a_function_cannot_spoil_the_records() -> None:
    kept = said("问", "好", list=[1, 2, 3])
    assert reward(function("spoils"))([kept]) == reward(function("spoils"))([kept]) == [3.0]


def test_a_function_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("SCORE = 4\n", encoding="utf-8")
    file = tmp_path / "my rewards.py"
    file.write_text(
        "import beside\ndef judge(prompts, replies): return [beside.SCORE] * len(replies)\n", encoding="utf-8"
    )
    assert reward(f"{file}:judge")(REPLIES) == reward(f"{file}:judge", process=True)(REPLIES) == [4.0, 4.0]
    with pytest.raises(ConfigError, match=r"no function 'jugde' in .*my rewards.py; expected module:function"):
        reward(f"{file}:jugde")
    with pytest.raises(
        ConfigError, match=r"nowhere.py:judge: FileNotFoundError: no such file; expected .*file.py:function"
    ):
        reward(f"{tmp_path / 'nowhere.py'}:judge")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (function("two", tmies=2), r"judging:two: .*unexpected keyword argument 'tmies'; expected a function of"),
        ({"reward": "verify:numbr"}, "unknown verifier 'numbr'"),
        ({"reward": "verify:length", "msot": 3}, "length: unknown option 'msot': did you mean most"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_an_error_before_the_run(entry: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        reward(entry)


# The record as a reward sees it


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "问", "response": "答", "level": 3}', {"prompt": "问", "response": "答", "level": 3}),
        ('{"prompt": "问", "level": 3}', {"prompt": "问", "response": "", "level": 3}),
        (
            '{"instruction": "问", "output": "答", "tags": ["甲"]}',
            {"instruction": "问", "output": "答", "tags": ["甲"], "response": "答"},
        ),
        ('{"turns": ["问", "答"], "id": 1}', {"turns": ["问", "答"], "id": 1, "response": "答"}),
        (
            '{"messages": [{"role": "user", "content": "问"}], "response": "42"}',
            {"messages": [{"role": "user", "content": "问"}], "response": "42"},
        ),
        ('["问", "答"]', {"turns": ["问", "答"], "response": "答"}),
        (
            '{"prompt": "问", "chosen": "好", "rejected": "坏"}',
            {
                "prompt": "问", "chosen": "好", "rejected": "坏", "response": "好",
                "scores": [{"answer": "好", "score": 1.0}, {"answer": "坏", "score": 0.0}],
            },
        ),
    ],
)  # fmt: skip
def test_a_record_is_described_by_its_own_fields_and_its_response(
    line: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    [record] = iter_records(file, reply="waiting")
    assert not hasattr(record, "text") and record.described() == expected


def test_the_fields_of_a_record_are_for_rewards_alone(tmp_path: Path) -> None:
    """They make no two records different, and are not written."""
    file, copy = tmp_path / "data.jsonl", tmp_path / "copy.jsonl"
    file.write_text('{"prompt": "问", "response": "答", "level": 3}\n', encoding="utf-8")
    asked, read = list(iter_records(file, reply="waiting")), list(iter_records(file))
    assert asked == read
    write_records(copy, asked)
    assert json.loads(copy.read_text("utf-8")) == {"prompt": "问", "response": "答"}


# Several rewards


def test_rewards_are_added_by_weight_and_none_counts_nothing() -> None:
    scores: dict[str, Any] = {"a": lambda given: [1.0, None, 3.0], "b": lambda given: [10.0, 20.0, None]}
    three = [said("问", "答", f"data.jsonl:{line}") for line in (1, 2, 3)]
    totals, given = Rewards(scores, {"a": 0.5, "b": -1.0})(three)
    assert totals == [0.5 - 10.0, -20.0, 1.5]
    assert given == {"a": [1.0, None, 3.0], "b": [10.0, 20.0, None]}  # logged without weights
    with pytest.raises(
        ConfigError, match=r"a: None, so that nothing judges the reply '答' to the record data.jsonl:2;"
    ):
        Rewards({"a": scores["a"]}, {"a": 0.5})(three)


@pytest.mark.parametrize(
    ("rewards", "problem"),
    [
        ("[a:b, a:b]", "a:b is there 2 times; give each a name"),
        ("[{reward: a:b, weight: heavy}]", "weight='heavy' of a:b: expected a number other than 0"),
        ("[{reward: a:b, weight: 0}]", "weight=0 of a:b"),
        ("[{reward: a:b, weight: true}]", "weight=True of a:b"),
        ("[{reward:a:b}]", "YAML needs a space after a colon"),
        ("[{weight: 1}]", "expected text, or {reward: NAME"),
        (
            "[{reward: a:b, since: 2024-01-01}]",
            r"since=datetime.date.* of a:b: expected text, numbers, lists or mappings",
        ),
        ("[{reward: a:b, name: 3}]", "name=3 of a:b: expected text"),
        ("[3]", r"expected text or a mapping, found a whole number"),
    ],
)
def test_a_malformed_entry_is_an_error(rewards: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(GrpoConfig, None, None, ["model=a", "data=b", f"rewards={rewards}"])


def test_entries_are_read_from_yaml_and_written_again(tmp_path: Path) -> None:
    text = "[verify:number, {reward: verify:length, weight: 0.1, most: 20, name: short}, my.py:judge]"
    config = load(GrpoConfig, None, None, ["model=a", "data=b", f"rewards={text}"])
    first, second, third = read_specs(config.rewards)
    assert (first.reward, first.name, first.weight, first.options) == ("verify:number", "verify:number", 1.0, {})
    assert (second.name, second.weight, second.options) == ("short", 0.1, {"most": 20})
    assert third.reward == "my.py:judge"
    (tmp_path / "run.yaml").write_text(dump(config), encoding="utf-8")
    assert load(GrpoConfig, None, tmp_path / "run.yaml") == config


def test_a_reward_model_takes_no_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a reward model takes no most"):
        reward({"reward": str(tmp_path), "most": 3})


# What fails

FAILURES = {
    "raises": r"ZeroDivisionError: division by zero \(.*judging.py:\d+\)",
    "leaves": r"SystemExit: leaving \(.*judging.py:\d+\)",
    "forgets": "gives 0 values for 1 replies",
    "texts": "gives '1.0'; expected a finite number or None for every reply",
    "nan": "gives nan; expected a finite number",
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_function_that_fails_names_itself_and_the_record(name: str) -> None:
    judge = reward(function(name))
    assert judge(REPLIES) == [1.0, 1.0]
    where = f"; the reply '很{BAD}' to the record data.jsonl:7$"
    with pytest.raises(ConfigError, match=f"^rewards: {HERE}:{name}: {FAILURES[name]}.*{where}"):
        judge(MIXED)


def test_a_wrong_number_of_values_is_told_without_reading_them_all() -> None:
    with pytest.raises(ConfigError, match=r"never_ends: gives more values for 1 replies; the reply '好'"):
        reward(function("never_ends"))(REPLIES)
    with pytest.raises(ConfigError, match=r"one_number: gives float; expected a list"):
        reward(function("one_number"))(REPLIES)


@pytest.mark.parametrize(("process", "seconds"), [(False, 0.5), (True, 1.5)])
def test_a_function_that_hangs_is_stopped_and_the_record_named(process: bool, seconds: float) -> None:
    judge = reward(function("hangs"), seconds=seconds, process=process)
    assert judge(REPLIES) == [1.0, 1.0]
    expected = rf"hangs: gives no answer within {seconds} seconds \(reward_seconds\); the reply '很{BAD}' to .*:7$"
    with pytest.raises(ConfigError, match=expected):
        judge(MIXED)
    assert judge(REPLIES) == [1.0, 1.0]


def test_a_function_that_is_slow_on_all_replies_blames_none() -> None:
    with pytest.raises(ConfigError, match=r"no single reply was found to cause it; the first of 20 is to .*:1$"):
        reward(function("slow"), seconds=0.8)(REPLIES * 10)


def test_a_function_that_crashes_takes_only_its_own_process_with_it() -> None:
    judge = reward(function("crashes"), process=True)
    assert judge(REPLIES) == [1.0, 1.0]
    with pytest.raises(ConfigError, match=rf"crashes: its process ended with exit status 7; the reply '很{BAD}'"):
        judge(MIXED)
    assert judge(REPLIES) == [1.0, 1.0]


def test_code_is_run_in_another_process_without_being_asked() -> None:
    own = float(os.getpid())
    assert reward(function("process_number"))(REPLIES) == [own, own]
    assert own not in reward(function("process_number"), process=True)(REPLIES)
    assert own not in reward(function("runs_replies"))(REPLIES)


def test_a_thread_that_cannot_be_interrupted_calls_another_process() -> None:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.extend(reward(function("process_number"))(REPLIES)))
    thread.start()
    thread.join()
    assert len(found) == 2 and os.getpid() not in found


# Runs


def prompts(folder: Path) -> None:
    lines = [
        {"prompt": text, "response": "", "wanted": wanted, "level": level}
        for text, wanted, level in (("你好吗", "好", 1), ("今天天气怎么样", "天", 2))
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "prompts.jsonl").write_text(text, encoding="utf-8")


def test_a_run_learns_from_records_with_weights_and_none(tmp_path: Path) -> None:
    """The logged reward is the weighted sum of what applies, by hand from the samples of the round."""
    starts(tmp_path, "pangu")
    prompts(tmp_path)
    level = function("only_hard", weight=0.25, name="level")
    entries = (f"{HERE}:wanted", level, {"reward": "verify:length", "most": 2, "weight": -1})
    config = small(GrpoConfig, tmp_path, rewards=entries, rounds=2, samples=4, group=2, show_rounds=1, trainer=FOUR)
    outcome = grpo(config)
    assert outcome.rounds == 2
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()]
    wanted = {"你好吗": ("好", 0.0), "今天天气怎么样": ("天", 0.5)}
    for one in samples:
        character, extra = wanted[one["prompt"]]
        short = sum(not letter.isspace() for letter in one["reply"]) <= 2
        assert one["reward"] == (character in one["reply"]) + extra - short
    [first, *_] = [entry for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "reward" in entry]
    assert first["reward/level"] == 2.0  # of the replies that it judges
    assert first["reward"] == pytest.approx(
        first[f"reward/{HERE}:wanted"] + 0.25 * 2.0 / 2 - first["reward/verify:length"]
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("hangs", "gives no answer within 0.5 seconds"),
        ("raises", "ZeroDivisionError"),
        ("forgets", "gives 0 values for 1"),
    ],
)
def test_a_run_stops_with_the_record_named(
    name: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts(tmp_path, "pangu")
    prompts(tmp_path)
    monkeypatch.setattr("tests.unit.judging.BAD", "")  # every reply is bad
    config = small(
        GrpoConfig, tmp_path, rewards=(f"{HERE}:{name}",), samples=4, group=2, reward_seconds=0.5, trainer=FOUR
    )
    with pytest.raises(ConfigError, match=rf"^rewards: {HERE}:{name}: {problem}.* to the record .*prompts.jsonl:[12]$"):
        grpo(config)
