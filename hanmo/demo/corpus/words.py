"""The words that the dialogue grammar composes with. Facts and everyday language, collected for this project."""

from __future__ import annotations

from typing import NamedTuple


class City(NamedTuple):
    name: str
    sight: str
    food: str


class Capital(NamedTuple):
    place: str
    city: str


class Pair(NamedTuple):
    """Two words that answer each other: opposites, halves of a couplet, lines of a poem."""

    one: str
    other: str


class Thing(NamedTuple):
    """A thing and what is said about it: its measure word, its colour, its price unit, what it does."""

    name: str
    mark: str


def listed(text: str) -> list[str]:
    """Words separated by spaces."""
    return text.split()


def pairs(text: str) -> list[tuple[str, str]]:
    """'大/小 高/矮' as tuples."""
    return [(one, other) for one, other in (item.split("/") for item in text.split())]


NAMES = listed(
    "小明 小红 小刚 小丽 小芳 小强 小华 小军 小雪 小东 小梅 小龙 小燕 小虎 小云 小兰 小张 小李 小王 小陈 小赵 小周 小林 小杨 "
    "老王 老李 老张 老刘 李明 王芳 张伟 刘洋 陈静 杨帆 赵敏 周涛 李雷 韩梅梅 王小明 林晓 孙悦 高飞"
)

CITIES = [
    City(*row.split("/"))
    for row in listed(
        "北京/故宫/烤鸭 上海/外滩/小笼包 西安/兵马俑/肉夹馍 成都/武侯祠/火锅 杭州/西湖/东坡肉 南京/中山陵/盐水鸭 苏州/拙政园/松鼠鱼 "
        "广州/陈家祠/早茶 桂林/漓江/米粉 重庆/洪崖洞/小面 武汉/黄鹤楼/热干面 长沙/岳麓山/臭豆腐 天津/古文化街/包子 "
        "哈尔滨/中央大街/红肠 昆明/滇池/过桥米线 拉萨/布达拉宫/酥油茶 兰州/黄河铁桥/牛肉面 厦门/鼓浪屿/沙茶面 洛阳/龙门石窟/水席 "
        "济南/趵突泉/甜沫 扬州/瘦西湖/炒饭 绍兴/鲁迅故居/黄酒 "
        "泉州/开元寺/面线糊"
    )
]

PROVINCES = [
    Capital(*pair)
    for pair in pairs(
        "浙江/杭州 江苏/南京 广东/广州 四川/成都 湖北/武汉 湖南/长沙 山东/济南 山西/太原 陕西/西安 河北/石家庄 河南/郑州 安徽/合肥 福建/福州 "
        "云南/昆明 甘肃/兰州 辽宁/沈阳 黑龙江/哈尔滨"
    )
]

COUNTRIES = [
    Capital(*pair)
    for pair in pairs(
        "中国/北京 日本/东京 韩国/首尔 法国/巴黎 英国/伦敦 德国/柏林 意大利/罗马 西班牙/马德里 俄罗斯/莫斯科 美国/华盛顿 加拿大/渥太华 埃及/开罗 "
        "印度/新德里 泰国/曼谷 希腊/雅典"
    )
]

OPPOSITES = [
    Pair(*pair)
    for one, other in pairs(
        "大/小 高/矮 长/短 快/慢 冷/热 新/旧 早/晚 多/少 远/近 上/下 左/右 前/后 里/外 黑/白 胖/瘦 轻/重 深/浅 宽/窄 干净/肮脏 安静/吵闹 "
        "勤劳/懒惰 勇敢/胆小 聪明/愚笨 高兴/难过 成功/失败 开始/结束 简单/复杂 容易/困难 安全/危险 美丽/丑陋 诚实/虚伪 骄傲/谦虚 光明/黑暗 "
        "进步/退步 增加/减少 热闹/冷清 温暖/寒冷 朋友/敌人"
    )
    for pair in ((one, other), (other, one))
]

MEASURES = [
    Thing(*pair)
    for pair in pairs(
        "书/本 杂志/本 词典/本 猫/只 狗/只 鸟/只 兔子/只 马/匹 牛/头 猪/头 鱼/条 蛇/条 河/条 裤子/条 汽车/辆 自行车/辆 树/棵 草/棵 花/朵 云/朵 "
        "衣服/件 毛衣/件 礼物/件 纸/张 桌子/张 床/张 地图/张 椅子/把 雨伞/把 刀/把 笔/支 帽子/顶 鞋/双 筷子/双 袜子/双 电影/部 手机/部 山/座 桥/座 "
        "房子/座 飞机/架 钢琴/架 船/艘 医院/家 饭店/家 商店/家 诗/首 歌/首 信/封 灯/盏 镜子/面 老师/位 客人/位 苹果/个 西瓜/个"
    )
]

COLOURS = [
    Thing(*pair)
    for pair in pairs(
        "草/绿色 天空/蓝色 大海/蓝色 雪/白色 云/白色 牛奶/白色 盐/白色 香蕉/黄色 柠檬/黄色 煤/黑色 墨/黑色 乌鸦/黑色 夜空/黑色 血/红色 国旗/红色 草莓/红色 "
        "西红柿/红色 橙子/橙色 胡萝卜/橙色 葡萄/紫色 茄子/紫色 树叶/绿色 黄瓜/绿色 竹子/绿色 向日葵/黄色 豆腐/白色"
    )
]

GOODS = [
    Thing(*pair)
    for pair in pairs(
        "苹果/斤 香蕉/斤 葡萄/斤 橙子/斤 梨/斤 土豆/斤 西红柿/斤 黄瓜/斤 牛肉/斤 鱼/条 西瓜/个 面包/个 鸡蛋/个 杯子/个 本子/本 书/本 铅笔/支 钢笔/支 "
        "牛奶/瓶 果汁/瓶 可乐/瓶 雨伞/把 毛巾/条 电影票/张 邮票/张"
    )
]

ANIMALS = listed("蚂蚁 蜜蜂 青蛙 老鼠 兔子 猫 狗 羊 猪 老虎 马 牛 长颈鹿 大象 鲸鱼")  # from small to large
PETS = listed("猫 狗 兔子 乌龟 鹦鹉 金鱼 仓鼠")
PET_NAMES = listed("豆豆 毛毛 花花 球球 乐乐 小黑 小白 多多 点点 旺财 咪咪 可可")
DISHES = listed(
    "面条 饺子 炒饭 包子 馄饨 火锅 烤鸭 米粉 牛肉面 麻婆豆腐 宫保鸡丁 红烧肉 鱼香肉丝 西红柿炒鸡蛋 糖醋排骨 酸辣汤"
)
DRINKS = listed("绿茶 红茶 咖啡 豆浆 牛奶 可乐 果汁 啤酒 酸奶 柠檬水")
FRUIT = listed("苹果 香蕉 葡萄 橙子 西瓜 草莓 桃子 梨 樱桃 芒果 菠萝 荔枝")
CLOTHES = listed("毛衣 衬衫 外套 裙子 裤子 帽子 围巾 大衣")
CLOTHES_COLOURS = listed("红色 蓝色 黑色 白色 绿色 黄色 灰色 紫色")
SIZES = listed("大号 中号 小号")
HOBBIES = listed(
    "看书 跑步 唱歌 跳舞 画画 下棋 钓鱼 爬山 游泳 打篮球 踢足球 打乒乓球 看电影 听音乐 写书法 做饭 摄影 旅游 种花 骑车"
)
FAMILY = listed("爸爸 妈妈 哥哥 姐姐 弟弟 妹妹 朋友 同学")
JOBS = [
    Thing(*pair)
    for pair in pairs(
        "医生/救死扶伤 老师/教书育人 司机/注意安全 厨师/手艺一定很好 学生/好好学习 护士/工作很辛苦 农民/粮食来得不容易 工人/劳动最光荣 警察/保护大家 "
        "程序员/少熬夜 画家/画一定很美 歌手/歌声一定动听 作家/文章一定精彩 律师/说话有道理 科学家/很了不起"
    )
]
VEHICLES = [Thing(*pair) for pair in pairs("火车/火车票 飞机/飞机票 高铁/高铁票 汽车/汽车票 大巴/大巴票")]

WEEKDAYS = listed("一 二 三 四 五 六 日")
DAY_OFFSETS = [Thing(*pair) for pair in pairs("明天/1 后天/2 昨天/-1 前天/-2")]
MONTHS = listed("一 二 三 四 五 六 七 八 九 十 十一 十二")
SEASONS = listed("春天 夏天 秋天 冬天")
ZODIAC = listed("鼠 牛 虎 兔 龙 蛇 马 羊 猴 鸡 狗 猪")
GREETING_TIMES = [
    Thing(*pair)
    for pair in pairs(
        "早上好/新的一天开始了 早安/今天也要加油 上午好/祝你今天顺利 中午好/该吃午饭了 下午好/喝杯茶吧 晚上好/今天辛苦了 晚安/做个好梦"
    )
]
WEATHERS = [
    Thing(*pair)
    for pair in pairs(
        "下雨/记得带伞 下雪/路上小心 刮风/多穿一件衣服 晴天/适合出去走走 阴天/可能会下雨 很热/多喝水 很冷/多穿衣服 有雾/开车要慢一点 打雷/不要站在树下"
    )
]
MOODS = [
    Thing(*pair)
    for pair in pairs(
        "高兴/太好了，我也为你高兴 难过/别难过，一切都会好的 生气/别生气，喝杯茶消消气 累/辛苦了，早点休息吧 紧张/深呼吸，你一定可以的 无聊/我们聊聊天吧 "
        "害怕/别怕，我陪着你 孤单/有我陪你聊天呢 激动/快告诉我发生了什么 饿/那快去吃点东西吧 渴/快喝点水吧 困/那就早点睡吧 着急/别着急，慢慢来"
    )
]
CAUSES = listed("考试 工作 下雨 朋友 天气 比赛 考了一百分 丢了钱包 明天放假 吃得太多 没睡好 要搬家")

POEMS = [
    Pair(*pair)
    for pair in pairs(
        "床前明月光/疑是地上霜 举头望明月/低头思故乡 春眠不觉晓/处处闻啼鸟 夜来风雨声/花落知多少 白日依山尽/黄河入海流 欲穷千里目/更上一层楼 "
        "锄禾日当午/汗滴禾下土 谁知盘中餐/粒粒皆辛苦 红豆生南国/春来发几枝 千山鸟飞绝/万径人踪灭 两个黄鹂鸣翠柳/一行白鹭上青天 "
        "飞流直下三千尺/疑是银河落九天 海内存知己/天涯若比邻 野火烧不尽/春风吹又生 独在异乡为异客/每逢佳节倍思亲"
    )
]

# Couplets by rule: every word has one partner of its own kind. The partners hold both ways. Tones are not observed.
COUPLET_SEASONS = [Pair(*pair) for pair in pairs("春/秋 秋/春 夏/冬 冬/夏 朝/暮 暮/朝 晓/夜 夜/晓")]
COUPLET_SKY = [Pair(*pair) for pair in pairs("风/雨 雨/风 云/月 月/云 霜/露 露/霜 日/星 星/日")]
COUPLET_PLACES = [Pair(*pair) for pair in pairs("山/水 水/山 江/海 海/江 门/窗 窗/门 岭/溪 溪/岭 楼/桥 桥/楼")]
COUPLET_COLOURS = [Pair(*pair) for pair in pairs("红/绿 绿/红 青/白 白/青 金/玉 玉/金 新/老 老/新")]
COUPLET_LIVING = [
    Pair(*pair) for pair in pairs("花/柳 柳/花 松/竹 竹/松 梅/菊 菊/梅 莺/燕 燕/莺 龙/虎 虎/龙 鹤/鹿 鹿/鹤")
]
COUPLET_VERBS = [
    Pair(*pair) for pair in pairs("吹/润 润/吹 照/映 映/照 开/落 落/开 来/去 去/来 飞/舞 舞/飞 生/起 起/生")
]
COUPLET_NUMBERS = [Pair(*pair) for pair in pairs("一/万 万/一 三/五 五/三 千/百 百/千 两/半 半/两")]
COUPLET_SINGLE = [
    Pair(*pair)
    for pair in pairs(
        "天/地 地/天 东/西 西/东 南/北 北/南 父/母 兄/弟 古/今 今/古 阴/阳 男/女 文/武 武/文 琴/棋 书/画 诗/酒 刚/柔 动/静 静/动 清/浊 甘/苦"
    )
]
