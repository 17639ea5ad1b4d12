"""What the benchmarks write: tables between marks, and a plot that is what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench import report
from bench.scale import place, plot

SVG = "{http://www.w3.org/2000/svg}"


def test_the_plot_shows_what_was_measured() -> None:
    seconds = {"`a` <b>": [0.5, 5, 50], "flat": [1, 1, 1]}
    memory = {"`a` <b>": [10.0, 20, 40], "flat": [0, 0, 0]}
    root = ElementTree.fromstring(plot.draw("blobs", [10**5, 10**6, 10**7], seconds, memory))
    assert {"a <b>", "flat", "blobs", "100,000", "10,000,000"} <= {
        text.text for text in root.iter(f"{SVG}text")
    }
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]
    rising, flat, double, zero = (circles[i : i + 3] for i in range(0, 12, 3))
    for line in (rising, flat, double, zero):
        assert [round(x - line[0][0]) for x, _ in line] == [0, 138, 276], "sizes are tenfold each"
    steps = [line[i][1] - line[i + 1][1] for line in (rising, flat, double) for i in (0, 1)]
    assert steps[0] == pytest.approx(steps[1], abs=0.2)
    assert steps[0] > 30
    assert steps[2:4] == [0, 0]
    assert steps[5] == pytest.approx(2 * steps[4], abs=0.2)
    assert zero[0][1] == 230, "the axis of memory begins with 0"


def test_a_table_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured: x -->\nold\n<!-- end: x -->\nafter\n")
    report.put_into(page, "x", place.table(["step", "s"], [["backup", place.seconds(0.0123)]]))
    text = page.read_text()
    assert re.sub(r"\s+", " ", text) == (
        "before <!-- measured: x --> | step | s | |---|---| | backup | 0.012 | <!-- end: x --> after "
    )
    with pytest.raises(SystemExit, match="no place marked"):
        report.put_into(page, "y", "")
