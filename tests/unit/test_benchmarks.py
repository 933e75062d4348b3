"""The page of results: sections of benchmarks are replaced, those written by hand stay."""

import pytest

from benchmarks import serve
from benchmarks.run_all import FIRST, sections, table, write


def test_a_new_section_leaves_the_others_as_they_were(tmp_path):
    page = tmp_path / "RESULTS.md"
    by_hand = "### A heading below\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"
    write(page, {"decode": "before", "Runs by hand": by_hand})
    parts = sections(page.read_text(encoding="utf-8"))
    assert parts == {"decode": "before", "Runs by hand": by_hand}
    write(page, {**parts, "decode": "after"})
    assert page.read_text(encoding="utf-8") == f"{FIRST}\n\n## decode\n\nafter\n\n## Runs by hand\n\n{by_hand}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["RESULTS.md"]


def test_the_table_says_where_a_goal_is_missed():
    figure = {"name": "n", "ours": 1.0, "peer": 2.0, "unit": "MB/s", "ratio": 0.5, "goal": 1.0, "met": False}
    assert table([figure]).splitlines()[-1] == "| n | 1.0 | 2.0 | MB/s | 0.5 | 1.0 | no |"
    assert table([]) == "Not run: the peer is not installed here."


@pytest.mark.parametrize("name", serve.SMALL)
def test_random_models_decode(name):
    opened = serve.small(name)
    [request, *_] = serve.requests(opened, 1)
    times = serve.served(opened, [serve.Request(request.context, 3)], clients=1)
    assert len(times.first) == 1 and len(times.between) == 2
