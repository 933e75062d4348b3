"""Replies that are hard to judge, with what a person says of them: (verifier, settings, expected answer, reply, right)."""

from typing import Any

Case = tuple[str, dict[str, Any], str, str, bool]


def cases(verifier: str, *rows: tuple[str, str, bool], **settings: Any) -> list[Case]:
    return [(verifier, settings, *row) for row in rows]


NUMBERS = cases(
    "number",
    ("123.5", "一共是一百二十三点五元。", True),
    ("2/3", "小红吃了这个蛋糕的三分之二", True),
    ("50%", "占全班的百分之五十。", True),
    ("50%", "大约五成", True),
    ("0.5", "折合成小数是０．５", True),
    ("1234567", "人口为1,234,567人", True),
    ("3/4", "答案是 $\\frac{3}{4}$。", True),
    ("3/4", "\\boxed{\\dfrac34}", True),
    ("0.75", "所以答案是3/4", True),
    ("12", "答案是12，不是13。", True),
    ("12", "先算3乘4得12，再检查一遍，没有问题。答案：12个。", True),
    ("8", "3+5=8（个）", True),
    ("8", "答：一共有8个苹果，一定没错。", True),
    ("8", "小明原来有3个，妈妈又给了5个，所以他现在有八个。", True),
    ("8", "小明原来有3个，妈妈又给了5个，所以他现在有九个。", False),
    ("25", "正方形的面积是25cm²。", True),
    ("25", "面积为 25 cm^2", True),
    ("36", "体积等于36立方厘米", True),
    ("-5", "今天的最低气温是零下5度。", True),
    ("-5", "结果是负五", True),
    ("-5", "结果是5", False),
    ("30000", "需要3万元", True),
    ("35000", "共三万五千元", True),
    ("35000", "3.5万", True),
    ("5", "这袋米重5千克。", True),
    ("12", "首先12除以4得3，然后乘以4，得到12", True),
    ("3", "首先12除以4得3，然后乘以4，得到12", False),
    ("15", "答案是12。不对，我算错了，应该是15。", True),
    ("12", "答案是12。不对，我算错了，应该是15。", False),
    ("1.5", "一又二分之一小时", True),
    ("305", "三百零五", True),
    ("350", "三百五", True),
    ("2026", "二〇二六年", True),
    ("10", "十分钟", True),
    ("7", "希望这个答案对你有帮助！结果等于7", True),
    ("7", "答案是7。希望这个答案对你有一点帮助！", True),
    ("12", "<think>试试11，好像不对，13也不对</think>答案是12", True),
    ("72", "Natalia sold 48/2 = 24 clips in May. Altogether 48+24 = 72. #### 72", True),
    ("18", "她每天卖9个鸡蛋，每个2美元，共收入 9*2=$18 美元。", True),
    ("100", "一百分", True),
    ("4", "我不知道。", False),
    ("4", "四", True),
    ("4", "四川在中国西南。", False),
    ("300000", "3×10^5", True),
    ("12", "12元（约合1.7美元）", True),
    ("1.7", "12元（约合1.7美元）", False),
    ("0.3", "30", False),
    ("2", "两个", True),
    ("12", "1. 先算3×4=12\n2. 所以一共12个\n答案：12", True),
    ("110", "1１0", True),
    ("1/3", "概率是0.33", False),
)  # fmt: skip

CHOICES = cases(
    "choice",
    ("B", "答案是B", True),
    ("C", "选(C)", True),
    ("B", "Ｂ", True),
    ("B", "我认为应该选Ｂ项。", True),
    ("D", "A选项错误，B选项不符合题意，C项说法有误，所以D正确。", True),
    ("A", "A选项错误，B选项不符合题意，C项说法有误，所以D正确。", False),
    ("B", "答案不是A，而是B。", True),
    ("A", "答案不是A，而是B。", False),
    ("B", "我先选A。不，仔细想想应该选B。", True),
    ("A", "我先选A。不，仔细想想应该选B。", False),
    ("C", "答案是C，因为A和B都没有提到时间。", True),
    ("B", "B. 北京", True),
    ("B", "正确答案：【B】", True),
    ("B", "\\boxed{B}", True),
    ("B", "可能是A或B。", False),
    ("AC", "答案：A、C", True),
    ("AC", "答案：AC", True),
    ("A", "答案：AC", False),
    ("C", "综上所述，故选C。", True),
    ("D", "以上都不对", False),
    ("A", "The answer is A.", True),
    ("B", "b", True),
    ("C", "选项A说的是苹果，选项B说的是梨，选项C说的才是香蕉，因此正确选项为C", True),
)  # fmt: skip

TEXTS = [
    *cases(
        "exact",
        ("北京", "北京。", True),
        ("北京", "“北京”", True),
        ("北京", "北京市", False),
        ("GPT-2", "ｇｐｔ－２", True),
        ("1.5", "15", False),
        ("鲁迅", " 鲁 迅 ", True),
    ),
    *cases(
        "contains",
        ("北京", "中国的首都是北京，有三千年历史。", True),
        ("3", "一共13个", False),
        ("3", "一共 3 个", True),
        ("cat", "concatenate", False),
        ("cat", "The Cat sat.", True),
        ("《红楼梦》", "他最爱读红楼梦", True),
    ),
]

COUPLETS = cases(
    "couplet",
    ("海阔凭鱼跃", "天高任鸟飞", True),
    ("海阔凭鱼跃", "天高任鸟飞。", True),
    ("上联：春风得意马蹄疾", "下联：秋月怡情雁影长", True),
    ("海阔凭鱼跃", "天高任鸟飞翔", False),
    ("海阔凭鱼跃", "海高任鸟飞", False),
    ("海阔凭鱼跃", "海阔凭鱼跃", False),
    ("明月松间照", "清泉石上流", True),
    ("明月松间照", "大树路边老", False),
)  # fmt: skip

ALL: list[Case] = [*NUMBERS, *CHOICES, *TEXTS]
