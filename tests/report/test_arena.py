"""The picture of the arena: bytes in use and the peak against a count byte by byte."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edgescale.report.arena import WIDTH, arena_table, moments, peak

ROW = st.tuples(st.integers(0, 90), st.integers(1, 40), st.integers(0, 4), st.integers(0, 4))


def _meta(rows: list[tuple[int, int, int, int]]) -> dict[str, Any]:
    plan = [
        {"tensor": f"t{i}", "offset": offset, "bytes": size, "first": min(a, b), "last": max(a, b)}
        for i, (offset, size, a, b) in enumerate(rows)
    ]
    layers = [{"steps": [index], "name": f"layer{index}"} for index in (0, 1, 3, 4)]
    return {"plan": plan, "layers": layers, "arena_bytes": 130, "arena_lower_bound": 1}


@given(st.lists(ROW, min_size=1, max_size=8))
def test_bytes_in_use_equal_a_count_of_single_bytes(rows: list[tuple[int, int, int, int]]) -> None:
    meta = _meta(rows)
    found = moments(meta)
    assert [m.name for m in found] == ["layer0", "layer1", "layer3", "layer4"]
    for index, moment in zip((0, 1, 3, 4), found, strict=True):
        alive = [r for r in meta["plan"] if r["first"] <= index <= r["last"]]
        used = {byte for r in alive for byte in range(r["offset"], r["offset"] + r["bytes"])}
        assert moment.live == len(used)
    assert peak(found).live == max(m.live for m in found)


def test_a_layer_in_stripes_shows_the_fullest() -> None:
    meta = _meta([(0, 10, 0, 0), (0, 30, 2, 2), (0, 20, 4, 4)])
    meta["layers"] = [{"steps": [0, 2, 4], "name": "striped"}]
    assert [m.live for m in moments(meta)] == [30]
    region = {"stripes": 3, "halo": "held", "first": "a", "last": "b", "layers": 2, "extra_macs": 0, "moved_bytes": 7}
    meta["memory"] = {"mode": "smallest", "regions": [region]}
    assert "in 3 stripes, held halo: a to b" in str(arena_table(meta).caption)


def test_the_picture_marks_the_peak_and_where_memory_is_free() -> None:
    meta = _meta([(0, 65, 0, 1), (65, 65, 1, 1)])
    table = arena_table(meta)
    assert "layer1: 130 B" in str(table.title)
    bars = list(table.columns[1].cells)
    assert all(len(str(bar)) == WIDTH for bar in bars)
    assert str(bars[0]).count("·") == WIDTH // 2
    assert "·" not in str(bars[1])
    assert str(bars[2]) == "·" * WIDTH
    assert "peak" in str(list(table.columns[2].cells)[1])
