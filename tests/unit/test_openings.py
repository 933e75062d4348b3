import pytest

from hanmo.demo.corpus import build
from hanmo.demo.examine import OPENINGS

REPLIES = {
    "你好": (["你好!很高兴和你聊天。", "嗨"], ["再见", "等于八", "", "三点了"]),
    "早上好！": (["早上好!新的一天开始了。", "你好!"], ["晚上好!", "早点睡,晚安。", "谢谢"]),
    "你叫什么名字？": (["我叫小翰,很高兴认识你。"], ["你叫小明。", "我叫小红。"]),
    "我叫小明。": (["你好,小明,很高兴认识你。", "小明你好,我是小翰。"], ["你好,小红。", "你好,小明,小红。", "你好!"]),
    "今天星期三，明天星期几？": (["明天星期四。", "星期四"], ["明天星期五。", "星期四还是星期五"]),
    "三加五等于几？": (["三加五等于八。", "八", "是八。"], ["三加五等于十八。", "等于八十。", "九"]),
    "大的反义词是什么？": (
        ["大的反义词是小。", "小"],
        ["大的反义词是大。", "小的反义词是小。", "小红", "反义词是矮小的人"],
    ),
    "北京有什么好玩的？": (["北京的故宫很有名,一定要去看看。"], ["北京的西湖很有名。", "北京很好。"]),
    "谢谢你！": (["不客气!"], ["谢谢。", "再见"]),
    "再见！": (["再见,欢迎再来聊天!"], ["你好!", "不客气"]),
}


def test_there_are_ten_and_nihao_is_among_them():
    assert len(OPENINGS) == 10 and "你好" in {opening.prompt for opening in OPENINGS}
    assert set(REPLIES) == {opening.prompt for opening in OPENINGS}


@pytest.mark.parametrize("opening", OPENINGS, ids=lambda opening: opening.means)
def test_fitting_and_unfitting_replies(opening):
    fitting, unfitting = REPLIES[opening.prompt]
    assert [reply for reply in fitting if not opening.fits(reply)] == []
    assert [reply for reply in unfitting if opening.fits(reply)] == []


def test_all_are_said_in_training():
    """What the corpus holds out is measured apart; the report says that the openings are not."""
    dialogues = build.build(size=40_000).train
    first = {dialogue.turns[0].rstrip("。？！") for dialogue in dialogues if len(dialogue.turns) == 2}
    assert {opening.prompt.rstrip("。？！") for opening in OPENINGS} <= first


def test_a_rambling_reply_does_not_fit():
    assert not OPENINGS[0].fits("你好" * 30)


def test_no_reply_fits_all():
    for _, (fitting, _) in REPLIES.items():
        assert sum(opening.fits(fitting[0]) for opening in OPENINGS) <= 3
