"""The benchmarks run and say what they promise; how fast anything is, is not a test's business."""

from __future__ import annotations

import json
import pathlib

import pytest

from benchmarks import __main__ as program
from benchmarks import catalogue, report
from benchmarks.measurement import Better, Effort, Measurement, Target, interleaved

FIELDS = ["name", "value", "unit", "baseline", "ratio"]


def measurement(**changes: object) -> Measurement:
    fields: dict[str, object] = {
        "name": "x", "value": 2.0, "unit": "ms", "baseline": 1.0, "against": "y", "samples": 3, **changes,
    }  # fmt: skip
    return Measurement(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ping", "exec"])
def test_a_benchmark_writes_the_json_that_is_promised(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "QUICK_SCALE", 0.001)
    output = tmp_path / "new" / "results.json"
    assert program.main(["--quick", "--only", name, "--output", str(output)]) == 0
    (found,) = json.loads(output.read_text())
    assert list(found)[:5] == FIELDS
    assert found["name"] == name
    assert found["value"] > 0 and found["baseline"] > 0
    assert found["ratio"] == pytest.approx(found["value"] / found["baseline"], rel=0.01)
    assert found["samples"] >= 3 and found["against"]
    assert found["ok"] is (found["ratio"] <= 2)
    assert name in capsys.readouterr().out
    assert [path.name for path in output.parent.iterdir()] == ["results.json"]


def test_results_of_others_are_kept_when_some_are_measured(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.json"
    report.write_json(path, [measurement(name="a"), measurement(name="b")])
    report.write_json(path, [measurement(name="b", value=7.0)], keep_others=True)
    assert {line["name"]: line["value"] for line in json.loads(path.read_text())} == {"a": 2.0, "b": 7.0}
    report.write_json(path, [measurement(name="b")])
    assert [line["name"] for line in json.loads(path.read_text())] == ["b"]


@pytest.mark.parametrize(
    ("target", "value", "inverse", "ok"),
    [
        (None, 2.0, False, None),
        (Target(2), 2.0, False, True),
        (Target(2), 2.01, False, False),
        (Target(0.6, at_most=False), 0.6, False, True),
        (Target(0.6, at_most=False), 0.59, False, False),
        (Target(5, at_most=False), 0.2, True, True),
        (Target(5, at_most=False), 0.21, True, False),
        (Target(1.5, on="value"), 1.4, False, True),
        (Target(1.5, on="value"), 1.6, False, False),
    ],
)
def test_a_target_is_judged(target: Target | None, value: float, inverse: bool, ok: bool | None) -> None:
    assert measurement(target=target, value=value, inverse=inverse).ok is ok


async def test_rounds_take_turns_and_the_warm_up_is_thrown_away() -> None:
    turns: list[str] = []

    async def turn(name: str) -> list[float]:
        turns.append(name)
        return [float(len(turns)), 0.5]

    a, b = await interleaved(lambda: turn("a"), lambda: turn("b"), rounds=2, warm_up=1)
    assert turns == ["a", "b"] * 3
    assert (a, b) == ([3.0, 0.5, 5.0, 0.5], [4.0, 0.5, 6.0, 0.5])


async def test_a_benchmark_that_fails_is_reported_and_the_others_run(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = catalogue.Benchmark("no_such_module", ("gone",))
    measurements, failed = await program.measured([broken, *catalogue.selected(["ping"])], Effort(0.001))
    assert failed
    assert [found.name for found in measurements] == ["ping"]
    assert "FAILED" in capsys.readouterr().out


def test_every_module_says_what_it_measures() -> None:
    for benchmark in catalogue.BENCHMARKS:
        assert "÷" in benchmark.description(), benchmark.module
    assert len(set(catalogue.NAMES)) == len(catalogue.NAMES)


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main(["--only", "nothing"])
    assert caught.value.code == 2
    assert "exec_vs_asyncssh" in capsys.readouterr().err


def test_the_page_keeps_what_people_wrote(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    missed = measurement(name="slow", target=Target(1), better=Better.LOWER)
    for _ in range(2):
        report.write_page(page, [missed], {"kernel": "Linux"})
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("| `slow` | 2 ms | 1 ms | 2.00 | ratio ≤ 1 MISSED | 3 |") == 1
    assert "| kernel | Linux |" in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the line"):
        report.write_page(page, [missed], {})


def test_the_documentation_has_the_place_for_results() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    assert text.index(report.BEGIN) < text.index(report.END)
    for name in catalogue.NAMES:
        assert f"`{name}`" in text, f"{name} is not explained"
