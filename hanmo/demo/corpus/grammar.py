"""The dialogue grammar: what can be said, as templates. ``corpus_template.Template`` says how they are written."""

from __future__ import annotations

from typing import Any

from hanmo.demo.corpus import words as words
from hanmo.demo.corpus.arithmetic import ARITHMETIC, DATES, numeral
from hanmo.demo.corpus.people import EVERYDAY, MEMORY
from hanmo.demo.corpus.small_talk import TALK
from hanmo.demo.corpus.template import Template


def _couplet(**pairs: words.Pair) -> dict[str, Any]:
    return {
        "upper": "".join(pair.one for pair in pairs.values()),
        "lower": "".join(pair.other for pair in pairs.values()),
    }


_COUPLET_FORMS = (
    "上联：{upper}|下联：{lower}",
    "上联是{upper}，下联是什么？|{lower}",
    "{upper}对什么？|{lower}。",
)

COUPLETS = (
    Template(
        "couplets 对联",
        _COUPLET_FORMS,
        {
            "a": words.COUPLET_SEASONS,
            "b": words.COUPLET_SKY,
            "c": words.COUPLET_VERBS,
            "d": words.COUPLET_COLOURS,
            "e": words.COUPLET_LIVING,
        },
        _couplet,
        ("a", "b", "c", "d", "e"),
        1.5,
    ),
    Template(
        "couplets 对联",
        _COUPLET_FORMS,
        {"a": words.COUPLET_NUMBERS, "b": words.COUPLET_PLACES, "c": words.COUPLET_COLOURS, "d": words.COUPLET_LIVING},
        _couplet,
        ("a", "b", "c", "d"),
    ),
    Template(
        "couplets 对联", _COUPLET_FORMS, {"a": words.COUPLET_SEASONS, "b": words.COUPLET_SKY}, _couplet, ("a", "b")
    ),
    Template(
        "couplets 对联", _COUPLET_FORMS, {"a": words.COUPLET_COLOURS, "b": words.COUPLET_LIVING}, _couplet, ("a", "b")
    ),
    Template(
        "couplets 对联",
        (
            "{pair.one}对什么？|对{pair.other}。",
            "{pair.one}对什么字？|{pair.other}",
            "对对子：{pair.one}|{pair.other}",
        ),
        {"pair": (*words.COUPLET_SINGLE, *words.COUPLET_SKY, *words.COUPLET_LIVING)},
    ),
    Template(
        "poems 诗句",
        (
            "{pair.one}，下一句是什么？|{pair.other}。",
            "{pair.one}的下一句是什么？|下一句是{pair.other}。",
            "你会背{pair.one}的下一句吗？|会，{pair.other}。",
            "请接下一句：{pair.one}|{pair.other}。",
            "{pair.other}的上一句是什么？|上一句是{pair.one}。",
            "{pair.other}，上一句呢？|{pair.one}。",
        ),
        {"pair": words.POEMS},
        weight=1.2,
    ),
)


def _bigger(one: str, two: str) -> dict[str, Any] | None:
    sizes = words.ANIMALS
    if one == two:
        return None
    yes = sizes.index(one) > sizes.index(two)
    return {"answer": f"对，{one}比{two}大" if yes else f"不对，{one}比{two}小", "big": one if yes else two}


def _tallest(a: str, b: str, c: str) -> dict[str, Any] | None:
    return {} if len({a, b, c}) == 3 else None


KNOWLEDGE = (
    Template(
        "opposites 反义词",
        (
            "{pair.one}的反义词是什么？|是{pair.other}。",
            "{pair.one}的反义词？|{pair.other}。",
            "请说出{pair.one}的反义词。|{pair.other}。",
            "和{pair.one}相反的词是什么？|是{pair.other}。",
        ),
        {"pair": words.OPPOSITES},
        weight=3,
    ),
    Template(
        "measure words 量词",
        (
            "一什么{thing.name}？|一{thing.mark}{thing.name}。",
            "{thing.name}用什么量词？|用{thing.mark}。",
            "{thing.name}的量词是什么？|是{thing.mark}。",
            "{thing.name}论什么数？|论{thing.mark}。",
        ),
        {"thing": words.MEASURES},
        weight=2.5,
    ),
    Template(
        "colours 颜色",
        (
            "{thing.name}是什么颜色的？|是{thing.mark}的。",
            "什么颜色的{thing.name}最常见？|{thing.mark}的{thing.name}。",
            "你知道{thing.name}的颜色吗？|知道，是{thing.mark}。",
            "{thing.name}的颜色是什么？|是{thing.mark}。",
            "你见过{thing.mark}的{thing.name}吗？|见过，{thing.name}是{thing.mark}的。",
        ),
        {"thing": words.COLOURS},
        weight=0.8,
    ),
    Template(
        "capitals 省会首都",
        (
            "{place.place}的省会是哪里？|是{place.city}。",
            "{place.place}的省会？|{place.city}。",
            "{place.city}是哪个省的省会？|是{place.place}的省会。",
            "你知道{place.place}省的省会吗？|知道，是{place.city}。",
        ),
        {"place": words.PROVINCES},
        weight=1.3,
    ),
    Template(
        "capitals 省会首都",
        (
            "{place.place}的首都是哪里？|是{place.city}。",
            "{place.place}的首都？|{place.city}。",
            "{place.city}是哪个国家的首都？|是{place.place}的首都。",
            "你知道{place.place}首都的名字吗？|知道，是{place.city}。",
        ),
        {"place": words.COUNTRIES},
        weight=1.2,
    ),
    Template(
        "reasoning 推理",
        ("{one}比{two}大吗？|{answer}。", "{one}和{two}哪个大？|{big}大。"),
        {"one": words.ANIMALS, "two": words.ANIMALS},
        _bigger,
        ("one", "two"),
        1.2,
    ),
    Template(
        "reasoning 推理",
        (
            "{a}比{b}高，{b}比{c}高，谁最高？|{a}最高。",
            "{a}比{b}高，{b}比{c}高，谁最矮？|{c}最矮。",
            "{a}比{b}大，{b}比{c}大，谁最小？|{c}最小。",
        ),
        {"a": words.NAMES, "b": words.NAMES, "c": words.NAMES},
        _tallest,
        ("a", "b", "c"),
    ),
)


def _bill(good: words.Thing, price: int, count: int) -> dict[str, Any]:
    amount = "两" if count == 2 else numeral(count)
    return {
        "p": "两" if price == 2 else numeral(price),
        "n": amount,
        "total": "两" if price * count == 2 else numeral(price * count),
    }


def _route(start: words.City, goal: words.City) -> dict[str, Any] | None:
    return {} if start != goal else None


def _two(one: str, two: str) -> dict[str, Any] | None:
    return {} if one != two else None


ERRANDS = (
    Template(
        "shopping 购物",
        (
            "{good.name}多少钱一{good.mark}？|{good.name}{p}块钱一{good.mark}。|买{n}{good.mark}。|好的，{n}{good.mark}{good.name}。",
            "{good.name}{p}块钱一{good.mark}，买{n}{good.mark}多少钱？|一共{total}块钱。",
        ),
        {"good": words.GOODS, "price": range(1, 6), "count": range(1, 6)},
        _bill,
        weight=2,
    ),
    Template(
        "shopping 购物",
        (
            "我要买{n}{good.mark}{good.name}。|好的，{n}{good.mark}{good.name}，还要别的吗？",
            "给我{n}{good.mark}{good.name}。|好的，给您{n}{good.mark}{good.name}。",
        ),
        {"good": words.GOODS, "count": range(1, 10)},
        lambda good, count: _bill(good, 1, count),
    ),
    Template(
        "shopping 购物",
        (
            "我想买一{m}{colour}的{cloth}。|好的，您要多大的？|{size}。|好的，{size}的{colour}{cloth}，请稍等。",
            "有没有{colour}的{cloth}？|有，{colour}的{cloth}很好看，您要多大的？|{size}的。|好的，给您{size}的{colour}{cloth}。",
            "我想买{cloth}。|您喜欢什么颜色的？|{colour}，{size}的。|好的，给您{size}的{colour}{cloth}。",
        ),
        {"cloth": words.CLOTHES, "colour": words.CLOTHES_COLOURS, "size": words.SIZES},
        lambda cloth, colour, size: {"m": {"裙子": "条", "裤子": "条", "围巾": "条", "帽子": "顶"}.get(cloth, "件")},
        ("cloth", "colour", "size"),
        1.5,
    ),
    Template(
        "food 饮食",
        (
            "服务员，点菜。|好的，您想吃什么？|来一份{dish}，再来一杯{drink}。|好的，一份{dish}，一杯{drink}。",
            "我要一份{dish}。|好的，您想喝点什么？|{drink}。|好的，一份{dish}，一杯{drink}，请稍等。",
            "来一份{dish}和一杯{drink}。|好的，马上就来。|我点了什么菜？|您点了{dish}。",
            "来一份{dish}和一杯{drink}。|好的，马上就来。|我点了什么喝的？|您点了{drink}。",
        ),
        {"dish": words.DISHES, "drink": words.DRINKS},
        combination=("dish", "drink"),
        weight=2,
    ),
    Template(
        "food 饮食",
        (
            "你喜欢{one}还是{two}？|都不错，不过我更喜欢{one}。",
            "{one}和{two}，你想吃哪个？|我想吃{one}。",
            "我不喜欢吃{one}，喜欢吃{two}。|那就多吃点{two}吧。",
        ),
        {"one": words.FRUIT + words.DISHES, "two": words.FRUIT + words.DISHES},
        _two,
        ("one", "two"),
        1.5,
    ),
    Template(
        "travel 旅行",
        (
            "我想去{city.name}玩。|好啊，{city.name}的{city.sight}很有名。|那里有什么好吃的？|{city.name}的{city.food}很好吃。",
            "{city.name}有什么好玩的？|{city.sight}很有名，一定要去看看。",
            "{city.name}有什么好吃的？|{city.food}很好吃，一定要尝尝。",
            "{city.name}有什么名胜？|{city.sight}。",
            "{city.name}有什么小吃？|{city.food}。",
            "{city.sight}在哪里？|在{city.name}。",
            "{city.sight}在哪个城市？|{city.name}。",
            "哪里的{city.food}最有名？|{city.name}的{city.food}最有名。",
            "我下个月去{city.name}。|真好，祝你玩得开心。|你觉得我应该去哪里看看？|去看看{city.sight}吧。",
        ),
        {"city": words.CITIES},
        weight=3,
    ),
    Template(
        "travel 旅行",
        (
            "我想从{start.name}去{goal.name}。|您想坐火车还是坐飞机？|坐{by.name}。|好的，从{start.name}到{goal.name}的{by.mark}一张。",
            "买一张从{start.name}到{goal.name}的{by.mark}。|好的，从{start.name}到{goal.name}，请收好您的{by.mark}。",
            "我要去{goal.name}。|您从哪里出发？|{start.name}。|好的，从{start.name}到{goal.name}，一路顺风。",
        ),
        {"start": words.CITIES, "goal": words.CITIES, "by": words.VEHICLES},
        lambda start, goal, by: _route(start, goal),
        ("start", "goal"),
        1.5,
    ),
)

TEMPLATES: tuple[Template, ...] = (*ARITHMETIC, *DATES, *COUPLETS, *KNOWLEDGE, *ERRANDS, *MEMORY, *EVERYDAY, *TALK)
