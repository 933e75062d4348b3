"""Templates about the people who talk: their names, what they said before, how they feel, what they do."""

from __future__ import annotations

from hanmo.demo.corpus import words as words
from hanmo.demo.corpus.template import Template

# Said between a fact and the question about it; in words that no other template uses.
_MIDDLE = (
    "今天天气怎么样？|今天天气不错。|",
    "你喜欢什么？|我喜欢和你聊天。|",
    "你会弹琴吗？|不会，不过我会对对子。|",
    "你在看什么书？|我在看字典。|",
    "你那里冷吗？|不冷，电脑里很暖和。|你吃什么？|我只吃电。|",
    "今天过得真快。|是啊，时间过得很快。|我们说到哪里了？|说到哪里都可以。|",
    "",
)

MEMORY = (
    Template(
        "names 名字",
        (
            "我叫{name}。|你好，{name}，很高兴认识你。",
            "你好，我是{name}。|{name}你好，我是小翰。",
            "我的名字是{name}。|{name}，真是个好名字。",
            "你可以叫我{name}。|好的，{name}。",
        ),
        {"name": words.NAMES},
        weight=1.2,
    ),
    Template(
        "memory 记住前文",
        (
            "你好，我叫{name}。|{name}，你好！|{middle}我叫什么名字？|你叫{name}。",
            "大家叫我{name}。|{name}，你好！|{middle}我叫什么名字？|你叫{name}。",
            "我是{name}，你呢？|{name}你好，我叫小翰。|{middle}你还记得我是谁吗？|记得，你是{name}。",
        ),
        {"name": words.NAMES, "middle": _MIDDLE},
        combination=("name", "middle"),
        weight=1.5,
    ),
    Template(
        "memory 记住前文",
        (
            "我是{city.name}人。|{city.name}是个好地方。|{middle}我是哪里人？|你是{city.name}人。",
            "我住在{city.name}。|{city.name}是个好地方。|{middle}我住在哪里？|你住在{city.name}。",
        ),
        {"city": words.CITIES, "middle": _MIDDLE},
        combination=("city", "middle"),
    ),
    Template(
        "memory 记住前文",
        (
            "我养了一只{pet}，叫{call}。|{call}一定很可爱。|{middle}我的{pet}叫什么？|你的{pet}叫{call}。",
            "我的{pet}叫{call}。|{call}，真好听。|{middle}我养了什么？|你养了{pet}。",
        ),
        {"pet": words.PETS, "call": words.PET_NAMES, "middle": _MIDDLE},
        combination=("pet", "call"),
    ),
    Template(
        "memory 记住前文",
        (
            "我喜欢{one}和{two}。|{one}和{two}都很有意思。|{middle}我喜欢什么？|你喜欢{one}和{two}。",
            "我喜欢{one}，不喜欢{two}。|好的，我记住了。|{middle}我不喜欢什么？|你不喜欢{two}。",
        ),
        {"one": words.HOBBIES, "two": words.HOBBIES, "middle": _MIDDLE},
        lambda one, two, middle: {} if one != two else None,
        ("one", "two"),
    ),
)

EVERYDAY = (
    Template(
        "greetings 问候",
        (
            "{time.name}！|{time.name}！{time.mark}。",
            "{time.name}，小翰。|{time.name}！{time.mark}。",
            "小翰，{time.name}！|{time.name}！{time.mark}。",
        ),
        {"time": words.GREETING_TIMES},
    ),
    Template(
        "greetings 问候",
        (
            "{time.name}，我是{name}。|{time.name}，{name}！",
            "小翰，{time.name}！我叫{name}。|{time.name}，{name}！",
            "{time.name}，我的名字是{name}。|{time.name}，{name}！",
        ),
        {"time": words.GREETING_TIMES, "name": words.NAMES},
        combination=("time", "name"),
    ),
    Template(
        "weather 天气",
        ("今天{weather.name}。|今天{weather.name}，{weather.mark}。", "外面{weather.name}。|{weather.mark}。"),
        {"weather": words.WEATHERS},
        weight=0.5,
    ),
    Template(
        "weather 天气",
        (
            "{city.name}今天{weather.name}。|{weather.mark}。",
            "明天{city.name}{weather.name}，我要注意什么？|{weather.mark}。",
        ),
        {"weather": words.WEATHERS, "city": words.CITIES},
        combination=("weather", "city"),
        weight=0.8,
    ),
    Template(
        "weather 天气",
        (
            "{city.name}的天气怎么样？|我不能上网，不知道{city.name}现在的天气。",
            "今天{city.name}热不热？|我不能上网，不知道{city.name}热不热。",
            "{city.name}明天会下雨吗？|我不能上网，不知道{city.name}明天的天气。",
        ),
        {"city": words.CITIES},
    ),
    Template(
        "feelings 心情",
        (
            "我今天很{mood.name}。|{mood.mark}。",
            "我{mood.name}了。|{mood.mark}。",
            "我现在很{mood.name}。|{mood.mark}。",
            "我好{mood.name}啊。|{mood.mark}。",
            "我有点{mood.name}。|{mood.mark}。",
        ),
        {"mood": words.MOODS},
        weight=0.8,
    ),
    Template(
        "feelings 心情",
        (
            "因为{cause}，我很{mood.name}。|{mood.mark}。",
            "我有点{mood.name}，因为{cause}。|{mood.mark}。",
            "我今天很{mood.name}，因为{cause}。|{mood.mark}。",
        ),
        {"mood": words.MOODS, "cause": words.CAUSES},
        combination=("mood", "cause"),
        weight=0.8,
    ),
    Template(
        "hobbies 爱好",
        (
            "我喜欢{hobby}。|我不会{hobby}，不过我喜欢听你说{hobby}的事。",
            "你会{hobby}吗？|我不会{hobby}，我只会聊天。",
            "我周末常去{hobby}。|真好，{hobby}很有意思。",
        ),
        {"hobby": words.HOBBIES},
        weight=0.7,
    ),
    Template(
        "hobbies 爱好",
        (
            "{name}喜欢{hobby}。|喜欢{hobby}的人真多，{name}常去吗？",
            "周末我想和{name}去{hobby}。|真好，祝你和{name}玩得开心。",
        ),
        {"hobby": words.HOBBIES, "name": words.NAMES},
        combination=("hobby", "name"),
    ),
    Template(
        "jobs 职业",
        (
            "我是{job.name}。|{job.name}啊，{job.mark}。",
            "我的工作是{job.name}。|{job.name}啊，{job.mark}。",
            "我想当{job.name}。|{job.name}很好，{job.mark}。",
        ),
        {"job": words.JOBS},
        weight=0.5,
    ),
    Template(
        "jobs 职业",
        (
            "我{who}是{job.name}。|你{who}是{job.name}啊，{job.mark}。",
            "我{who}想当{job.name}。|{job.name}很好，{job.mark}。",
        ),
        {"job": words.JOBS, "who": words.FAMILY},
        combination=("job", "who"),
        weight=0.8,
    ),
)
