"""Cleaning steps on planted and on clean lines, recipes, and runs that are interrupted."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from hanmo.data.parallel import blocks
from hanmo.data.prepare.cleaning import clean as clean_module
from hanmo.data.prepare.cleaning.clean import Cleaned, StepReport, clean, read_block, report, write_block
from hanmo.data.prepare.cleaning.personal import found, masked
from hanmo.data.prepare.cleaning.recipe import Recipe, build, load, named
from hanmo.data.prepare.cleaning.statistics import Fluency, Relevance
from hanmo.data.prepare.cleaning.steps import Repetition
from hanmo.errors import ConfigError, HanmoError, RecordError
from hanmo.records import Dialogue, PromptResponse, Record, Rejects, ScoredAnswers, Text, iter_records, write_records

SUBJECTS = ["我妈", "同事小李", "隔壁老王", "我弟弟", "数学老师", "楼下的阿姨", "我的室友", "老板", "表姐", "班长"]
ACTS = [
    "昨天做了红烧肉",
    "周末去爬山了",
    "在学弹吉他",
    "养了一只橘猫",
    "买了辆自行车",
    "最近总是加班",
    "报了游泳课",
    "喜欢看科幻片",
]
ENDS = [
    "，感觉挺有意思的",
    "，说下次带我一起",
    "，可是天气太热了",
    "，花了不少时间",
    "，结果差点迟到",
    "，开心得不得了",
]
# Numbers and words that look like what the steps look for, in ordinary talk.
TRAPS = [
    "这本书一共有1234567个字",
    "我在2023年10月5号买的，花了12800块",
    "他身高178，体重65公斤",
    "订单编号是20240101123456789",
    "一二三四五，上山打老虎",
    "微信群里大家都在聊球赛",
    "优惠活动已经结束了吧",
    "这个二维码怎么扫不出来",
    "公众号的文章写得不错",
    "圆周率是3.14159265358979",
]


def _clean_lines(count: int, seed: int = 0) -> list[str]:
    rng = Random(seed)
    lines = [rng.choice(SUBJECTS) + rng.choice(ACTS) + rng.choice(ENDS) for _ in range(count - 2 * len(TRAPS))]
    return lines + TRAPS * 2


def _digits(rng: Random, count: int) -> str:
    return "".join(str(rng.randrange(10)) for _ in range(count))


def _identity(rng: Random) -> str:
    body = f"11010519{rng.randrange(50, 99)}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}{_digits(rng, 3)}"
    weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]  # as the standard lists them
    return body + "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]


def _phone(rng: Random) -> str:
    number = f"1{rng.choice('3456789')}{_digits(rng, 9)}"
    wide = "".join(chr(ord(digit) + 0xFEE0) for digit in number)
    chinese = "".join("零一二三四五六七八九"[int(digit)] for digit in number)
    apart = f"{number[:3]}-{number[3:7]}-{number[7:]}"
    return rng.choice([number, apart, f"+86 {number}", " ".join(number), wide, chinese, f"010-8{_digits(rng, 7)}"])


PLANTED: dict[str, Any] = {
    "phone": _phone,
    "id": _identity,
    "email": lambda rng: (
        f"{rng.choice(['li', 'zhang_3', 'a.b'])}{_digits(rng, 3)}@{rng.choice(['qq.com', '163.com', 'mail.edu.cn'])}"
    ),
    "qq": lambda rng: f"{rng.choice(['QQ', 'qq：', 'Qq号是', '扣扣 ', 'QQ群:'])}{rng.randrange(1, 9)}{_digits(rng, 8)}",
    "wechat": lambda rng: (
        f"{rng.choice(['微信', 'vx：', '微信号 ', 'WX: ', '薇信号：'])}{rng.choice(['abc', 'xiaoli_', 'wx-'])}{_digits(rng, 5)}"
    ),
}
ADVERTS = [
    "诚招代理，一件代发，加微信详聊",
    "日赚三百不是梦，想做的私聊我",
    "厂家直销全场包邮，点击链接下单",
    "无抵押贷款秒到账，联系我就行",
    "代开发票，有意者私信我",
    "减肥药正品，免费领取试用装，加我",
    "兼职刷单日结，进群了解",
    "面膜代购，限时优惠，戳链接",
    "专业论文代发包过，加q咨询",
    "网赚项目月入过万，扫码进群",
]


def _scores(step: str, settings: dict[str, Any], planted: list[str]) -> tuple[float, float]:
    """Recall and precision of a step over planted and as many clean lines."""
    (_, judge), *_ = build([{step: settings}], "test").steps
    clean_lines = _clean_lines(len(planted))
    hits = sum(judge.fault([line]) is not None for line in planted)
    false = sum(judge.fault([line]) is not None for line in clean_lines)
    return hits / len(planted), hits / max(hits + false, 1)


@pytest.mark.parametrize("kind", PLANTED)
def test_personal_data_recall_and_precision(kind: str) -> None:
    rng = Random(kind)
    hosts = _clean_lines(200, 1)
    planted = [f"{host}，{PLANTED[kind](rng)}，记得啊" for host in hosts]
    recall, precision = _scores("personal", {}, planted)
    assert recall >= 0.99 and precision >= 0.99


def test_adverts_recall_and_precision() -> None:
    rng = Random(1)
    planted = [
        rng.choice(["", "亲，", "姐妹们，", "重要通知：", "【推荐】"])
        + rng.choice(ADVERTS)
        + rng.choice(["！", "哦~", "。", ""])
        for _ in range(200)
    ]
    recall, precision = _scores("adverts", {}, planted)
    assert recall >= 0.95 and precision >= 0.97


def test_addresses_recall_and_precision() -> None:
    rng = Random(2)
    urls = [
        "https://t.cn/A6{}",
        "http://www.example.com/a?b={}",
        "www.abc{}.cn/x",
        "item{}.taobao.com",
        "https://x.org/{}#top",
    ]
    planted = [f"看这个{rng.choice(urls).format(_digits(rng, 4))} 很好" for _ in range(200)]
    recall, precision = _scores("urls", {"remove": True}, planted)
    assert recall == 1.0 and precision == 1.0


def test_planted_duplicates_recall_and_precision(tmp_path: Path) -> None:
    """Same but for punctuation, and with a few characters changed; 200 of them among 400 that are different."""
    rng = Random(3)
    base = ["".join(chr(0x4E00 + rng.randrange(2000)) for _ in range(60)) for _ in range(400)]
    same = [text[:30] + "，" + text[30:] for text in base[:100]]
    near = [text[:50] + "了" + text[51:] for text in base[100:200]]
    write_records(tmp_path / "in.jsonl", [Text(text) for text in base + same + near])
    done = _run(build(["same_sessions", {"near_duplicates": {"threshold": 0.7}}], "test"), tmp_path)
    kept = {record.text for record in iter_records(tmp_path / "out.jsonl")}
    assert done.steps["same_sessions"].removed == 100
    assert done.steps["near_duplicates"].removed >= 97
    assert len(kept & set(base)) == 400


@pytest.mark.parametrize("kind", PLANTED)
def test_masked_text_has_no_personal_data_left(kind: str) -> None:
    rng = Random(kind)
    for _ in range(50):
        text = f"你好，{PLANTED[kind](rng)}，谢谢"
        assert found(masked(text)) is None
        assert masked(text).startswith("你好，") and masked(text).endswith("，谢谢")


def test_a_wrong_check_digit_is_no_identity_card() -> None:
    number = "11010519491231002X"  # the example of GB 11643
    assert found(number) == ("id", number)
    assert found("110105194912310021", ("id",)) is None


STEPS = [
    (
        "platform_markup",
        {},
        ["回复@小明:好啊", "转发微博", "//@某人:哈哈 @你", "去  吧"],
        ["好啊", "", "哈哈", "去 吧"],
    ),
    ("urls", {}, ["看http://t.cn/abc吧", "3.14"], ["看吧", "3.14"]),
    (
        "repeated_runs",
        {"most": 2},
        ["哈哈哈哈哈哈", "好不好好不好好不好", "1000000", "aab"],
        ["哈哈", "好不好好不好", "1000000", "aab"],
    ),
    ("personal", {"mask": True}, ["电话13812345678哦"], ["电话<电话>哦"]),
]


@pytest.mark.parametrize(("name", "settings", "turns", "expected"), STEPS, ids=[case[0] for case in STEPS])
def test_edits(name: str, settings: dict[str, Any], turns: list[str], expected: list[str]) -> None:
    ((_, step),) = build([{name: settings}], "test").steps
    assert step.edit(turns) == expected
    assert step.fault(turns) is None


FAULTS = [
    ("length", {"longest": 4}, ["一二三四"], ["一二三四五"]),
    ("length", {}, ["好"], [""]),
    ("turn_count", {"most": 2}, ["一", "二"], ["一", "二", "三"]),
    ("language", {}, ["今天我用iPhone拍照了"], ["this is not Chinese 啊"]),
    ("language", {}, ["今天天气好"], ["今天はとても天気がいい好好好好好"]),
    ("language", {"turn_by_turn": True}, ["你好", "很好"], ["你好你好你好你好", "hello"]),
    ("symbols", {}, ["？？", "好的！"], ["=￣ω￣=～～～1"]),
    ("repetition", {}, ["今天天气很好，我们一起去公园散步，顺便买点水果回来吃"], ["买买买" * 10]),
    (
        "repetition",
        {"most": 1.0},
        ["第一行内容\n第二行内容\n第三行的内容在这里"],
        ["同一行的内容\n同一行的内容\n同一行的内容\n别的"],
    ),
    ("repeats_previous", {}, ["在吗", "在"], ["在吗", "在吗？"]),
    ("generic", {}, ["吃了吗", "吃了两碗面"], ["吃了吗", "不知道。"]),
]


@pytest.mark.parametrize(("name", "settings", "good", "bad"), FAULTS)
def test_faults(name: str, settings: dict[str, Any], good: list[str], bad: list[str]) -> None:
    ((_, step),) = build([{name: settings}], "test").steps
    assert step.fault(good) is None
    assert step.fault(bad)


def test_the_users_lists(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# 明星\n张三丰\n\n李 四 光\n", encoding="utf-8")
    recipe = build(
        [{"words": {"words": str(words)}}, {"adverts": {"words": str(words)}}, {"generic": {"words": str(words)}}], "x"
    )
    for _, step in recipe.steps:
        assert step.fault(["李四光"]) and not step.fault(["王五是谁"])


def test_relevance_by_hand() -> None:
    """Two documents have 猫 of four: idf = ln(5 / 3); 今天 is everywhere: ln(5 / 5) = 0 counts nothing."""
    step = Relevance(decay=1.0, from_words=1)
    for turn in ("今天 猫", "今天 猫", "今天 狗", "今天 鱼"):
        step.fit([turn])
    assert step.score(["今天 猫"], "今天 猫") == pytest.approx(1.0)
    assert step.score(["今天 猫", "狗"], "猫") == pytest.approx(0.5)  # two turns back, decay 1
    assert step.score(["今天"], "今天 猫") == pytest.approx(0.0)
    assert step.fault(["今天 猫", "狗"]) and not step.fault(["猫", "猫"])


def test_relevance_asks_another_scorer() -> None:
    step = Relevance(least=0.5, scorer=f"{__name__}:_scorer")
    assert step.fault(["问", "答"]) is None and step.fault(["问", "错"])
    with pytest.raises(ConfigError, match="expected module:function"):
        Relevance(scorer="no.such:thing").fault(["一", "二"])


def _scorer(before: list[str], reply: str) -> float:
    return float(reply == "答")


def test_fluency_tells_order_from_disorder(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = _clean_lines(400)
    write_records(corpus, [Text(line) for line in lines])
    step, rng = Fluency(corpus=corpus), Random(4)
    step.fit([])
    for line in _clean_lines(40, 9):
        shuffled = "".join(rng.sample(line, len(line)))
        assert step.score(line) > step.score(shuffled) + 1


def test_fluency_judges_a_text_by_the_others() -> None:
    step = Fluency()
    strange = "乱七八糟的字排在一起"
    for text in ["今天天气真好"] * 5 + [strange]:
        step.fit([text])
    assert step.score("今天天气真好") > step.score(strange)


def _run(recipe: Recipe, folder: Path, **options: Any) -> Cleaned:
    return clean(recipe, [folder / "in.jsonl"], folder / "out.jsonl", **options)


def test_rejects_counts_and_examples(tmp_path: Path) -> None:
    records: list[Record] = [
        Dialogue(("吃了吗", "吃了两碗面")),
        Dialogue(("在吗", "不知道")),
        Dialogue(("打我电话13812345678", "好啊好啊")),
    ]
    write_records(tmp_path / "in.jsonl", records)
    done = _run(build(["personal", "generic"], "test"), tmp_path, rejects=tmp_path / "rejects.jsonl")
    assert (done.read, done.kept) == (3, 1)
    assert {name: step.removed for name, step in done.steps.items()} == {"personal": 1, "generic": 1}
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(entry["step"], entry["where"].rpartition(":")[2]) for entry in rejects] == [
        ("generic", "2"),
        ("personal", "3"),
    ]
    assert "13812345678" in done.as_dict()["steps"][0]["examples"][0]
    html = report(done, "test", ["in.jsonl"]).html()
    assert "13812345678" in html and "generic" in html
    assert not list(tmp_path.glob(".*blocks"))


def test_scored_answers_lose_only_the_bad_ones(tmp_path: Path) -> None:
    good, bad = ("写得真好看", 3.0), ("加微信 abc12345", 9.0)
    write_records(
        tmp_path / "in.jsonl",
        [ScoredAnswers("新闻", (bad, good)), ScoredAnswers("新闻二", (bad,)), PromptResponse("问", "答")],
    )
    done = _run(build(["personal"], "test"), tmp_path)
    assert list(iter_records(tmp_path / "out.jsonl")) == [ScoredAnswers("新闻", (good,)), PromptResponse("问", "答")]
    assert done.steps["personal"].removed == 2


def _corpus(folder: Path) -> None:
    rng = Random(6)
    lines = _clean_lines(600, 6) + [f"{line}，{_phone(rng)}" for line in _clean_lines(100, 7)]
    rng.shuffle(lines)
    write_records(folder / "in.jsonl", [Dialogue(pair) for pair in zip(lines[::2], lines[1::2], strict=True)])


def _outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("out.jsonl", "rejects.jsonl")]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_goes_on_and_writes_the_same(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_module, "BLOCK", 50)
    _corpus(tmp_path)
    rejects = tmp_path / "rejects.jsonl"
    _run(load("eva"), tmp_path, rejects=rejects)
    expected = _outputs(tmp_path)
    assert all(expected)
    (tmp_path / "out.jsonl").unlink()

    def stop(done: int) -> None:
        if done >= 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(load("eva"), tmp_path, rejects=rejects, progress=stop)
    (kept,) = tmp_path.glob(".*blocks")
    before = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert 3 <= len(before) < 7
    assert not (tmp_path / "out.jsonl").exists()
    seen: list[dict[Path, int]] = []
    original = blocks.forget
    monkeypatch.setattr(
        blocks,
        "forget",
        lambda folder: (seen.append({path: path.stat().st_mtime_ns for path in before}), original(folder)),
    )
    _run(load("eva"), tmp_path, rejects=rejects, workers=workers)
    assert _outputs(tmp_path) == expected
    assert seen == [before]  # what was done was not done again


def test_other_settings_do_not_go_on_with_old_results(tmp_path: Path) -> None:
    _corpus(tmp_path)
    places = {
        blocks.job_folder(tmp_path / "out", {"recipe": load(name).settings()}, [tmp_path / "in.jsonl"])
        for name in named()
    }
    (tmp_path / "in.jsonl").write_text("[]", encoding="utf-8")
    places |= {blocks.job_folder(tmp_path / "out", {"recipe": load("eva").settings()}, [tmp_path / "in.jsonl"])}
    assert len(places) == len(named()) + 1


def test_never_over_its_own_input(tmp_path: Path) -> None:
    _corpus(tmp_path)
    with pytest.raises(ConfigError, match="its own input"):
        clean(load("eva"), [tmp_path / "in.jsonl"], tmp_path / "in.jsonl")


def test_bad_lines_stop_the_work_or_are_counted(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "一段好好的文字"}\n{"text": 3}\n', encoding="utf-8")
    with pytest.raises(RecordError, match=r"in\.jsonl:2"):
        _run(build(["length"], "test"), tmp_path)
    bad = Rejects()
    assert _run(build(["length"], "test"), tmp_path, bad=bad).bad == 1


@pytest.mark.parametrize("name", named())
def test_recipes_by_name_survive_being_written_and_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(load(name).settings(), sort_keys=False), encoding="utf-8")
    assert load(str(path)).settings() == load(name).settings()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["lenght"], "did you mean length"),
        ([{"length": {"longst": 3}}], "step length: .*did you mean longest"),
        ([{"length": {"longest": "many"}}], "expected a whole number"),
        (["same_sessions", "length"], "duplicates come last"),
        (["length", {"length": {"longest": 3}}], "comes twice"),
        ([{"words": {}}], "words: not given"),
        ([{"repeated_runs": {"most": 0}}], "most=0: must be between 1 and 1000"),
        ([{"repeated_runs": {"most": 10**30}}], "must be between 1 and 1000"),
        ([{"near_duplicates": {"threshold": 1.5}}], r"threshold=1\.5: must be between 0 and 1"),
        ([{"same_utterances": {"most": 0}}], "most=0: must be at least 1"),
        ([{"language": {"foreign": -0.1}}], "must be between 0 and 1"),
        ([{"symbols": {"most": 60}}], "must be between 0 and 1"),
        ([{"repetition": {"n_gram": 0}}], "n_gram=0: must be at least 1"),
        ([{"repetition": {"most_lines": 2}}], "most_lines=2.0: must be between 0 and 1"),
        ([{"generic": {"most": -1}}], "must be between 0 and 1"),
        ([{"relevance": {"decay": -1e30}}], "must be between 0 and 100"),
        ({}, "expected a list of steps"),
        ([3], "expected a step's name"),
    ],
)
def test_mistakes_in_recipes(entries: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(entries, "mine.yaml")


def test_a_turn_of_fewer_characters_than_an_n_gram_repeats_nothing() -> None:
    assert Repetition(n_gram=30).fault(["好" * 25]) is None and Repetition(n_gram=20).fault(["好" * 25])


def test_unknown_recipe() -> None:
    with pytest.raises(ConfigError, match="did you mean eva"):
        load("evaa")


def test_what_lies_in_the_folder_of_blocks_is_data(tmp_path: Path) -> None:
    """A pickle that somebody put there would run; as JSON lines it is refused, and says what to do."""

    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("你好\t你好吗\n", encoding="utf-8")
    recipe = named()["eva"]
    clean(build(recipe, "eva"), [source], out, share=(0, 1))
    (block,) = (file for folder in tmp_path.glob(".out.txt.*.blocks") for file in folder.iterdir())
    block.write_bytes(pickle.dumps(Runs()))
    with pytest.raises(HanmoError, match=r"00000000: not the result of a block .*; remove .*\.blocks and begin again"):
        clean(build(recipe, "eva"), [source], out)
    assert not (tmp_path / "executed").exists() and not out.exists()
    pickle.loads(block.read_bytes())
    assert (tmp_path / "executed").exists(), "the pickle would have run"


@pytest.mark.parametrize(
    "record",
    [
        Text("一行\n两行\u2028三行\ud800"),
        Dialogue(("你好", "", "再见"), "系统"),
        PromptResponse("问", "答", "答：", "系统"),
        ScoredAnswers("问", (("好", 1.5), ("坏", -2)), "答：", "", history=("早", "早啊")),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_comes_back_from_a_block_as_it_went_in(record: Record, tmp_path: Path) -> None:
    record = replace(record, where="a.txt:7")
    judged: list[Any] = [(record, []), (None, [("step", "reason", "text", "a.txt:8")])]
    reports = {"step": StepReport(3, 1, [(5, "before", "→ after")])}
    write_block(tmp_path / "block", judged, reports)
    assert read_block(tmp_path / "block") == (judged, reports)
    back = read_block(tmp_path / "block")[0][0][0]
    assert back is not None and back.where == "a.txt:7" and hash(back) == hash(record)
