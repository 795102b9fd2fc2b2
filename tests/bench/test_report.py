"""Result files made by the real functions, drawn: labels in the pictures, numbers in the tables, refusals."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.bench.fake_server import FakeServer
from tests.cli.support import call
from tokenmill.bench.http import Client
from tokenmill.bench.machine import make_result, write_result
from tokenmill.bench.report import PICTURES, make_report, read_result
from tokenmill.bench.report.draw import INK, number
from tokenmill.bench.report.loads import latency_by_rate
from tokenmill.bench.serve_sweep import ServeOptions, measure
from tokenmill.core.errors import ConfigError, SetupError
from tokenmill.perf.metrics import SLO, Timeline
from tokenmill.perf.result import Counts, Delivered, Seen, Window, goodput_knee, make_run, pareto_front

GROUPS = {
    "tpot": {"n": 40, "median": 0.051, "mean": 0.082, "p90": 0.21},
    "ttft": {"n": 12, "median": 0.11, "mean": 0.19, "p90": 0.4},
}


class Page(HTMLParser):
    """The parts of a page that the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.svg_labels: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[name] for name in ("href", "src", "xlink:href") if name in found]
        if tag == "svg":
            self.svg_labels.append(found.get("aria-label", ""))
            assert found["role"] == "img"
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data


def simulated(points: list[dict[str, Any]], factor: float) -> dict[str, Any]:
    """A simulation of ``points`` in which all takes ``factor`` times as long."""
    runs = []
    for point in points:
        samples = point["samples"]
        timelines = [
            Timeline(ttft * factor, e2e * factor, (), tokens)
            for ttft, e2e, tokens in zip(samples["ttft_s"], samples["e2e_s"], samples["output_tokens"], strict=True)
        ]
        tokens = point["tokens"]
        delivered = Delivered(len(timelines), tokens["input"], tokens["output"])
        window = Window("measured", 0.0, point["window"]["duration_s"])
        run = make_run(Seen(timelines), Counts(completed=len(timelines)), delivered, window, SLO(ttft_s=0.3))
        runs.append({"rate_per_s": point["rate_per_s"], **run})
    return {"model": "fake", "engine": {"name": "tokenmill"}, "points": runs}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Path]:
    """One result of each kind, by name."""
    folder = tmp_path_factory.mktemp("results")
    options = ServeOptions(
        num_requests=10, rates=(8.0, 60.0), prompt_tokens="4-200", output_tokens="3", slo="ttft=0.3", arrivals="uniform"
    )
    with FakeServer(one_at_a_time=True).running() as fake:
        sweep = asyncio.run(measure(Client(fake.url), options))
    kept = {"sweep": ("serve", sweep), "guess": ("simulate", simulated(sweep["points"], 1.2))}
    for name, (kind, figures) in kept.items():
        write_result(folder / f"{name}.json", make_result(kind, figures))
    score = {"rows": 60, "supported": 52, "interval_coverage": 0.9, "groups": GROUPS}
    (folder / "score.json").write_text(json.dumps(score))
    found = {name: folder / f"{name}.json" for name in (*kept, "score")}
    committed = {"kernels": "kernels-qwen3-0.6b", "step": "step-qwen3-0.6b-int8", "first_form": "serve-story"}
    return found | {name: root / "results" / f"{file}.json" for name, file in committed.items()}


@pytest.fixture(scope="module")
def drawn(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("report")
    make_report(list(files.values()), folder / "report.html", folder / "png")
    return (folder / "report.html").read_text(), folder


def table_of(html: str, picture: str) -> list[list[str]]:
    section = html[html.index(f'<section id="{picture}">') :]
    return Page(section[: section.index("</section>")]).tables[0]


def test_the_page_needs_nothing_else_and_can_be_read_aloud(drawn: tuple[str, Path]) -> None:
    html, _ = drawn
    page = Page(html)
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", html)
    assert len(page.svg_labels) == len(PICTURES) and all(len(label) > 30 for label in page.svg_labels)
    assert len(page.ids) == len(set(page.ids)), "pictures must not share ids"
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    assert not re.search(r"\b(nan|inf)\b", html, re.IGNORECASE)


def test_ink_follows_the_pages_ground(drawn: tuple[str, Path]) -> None:
    html, _ = drawn
    pictures = "".join(re.findall(r"<svg .*?</svg>", html, re.DOTALL))
    assert "var(--ink)" in pictures and "var(--grid)" in pictures
    assert INK not in pictures and "#000000" not in pictures
    assert "prefers-color-scheme: dark" in html


def test_axes_and_series_are_named_in_the_pictures(drawn: tuple[str, Path]) -> None:
    html, _ = drawn
    for text in (
        "input tokens", "time to first token, ms", "requests/s offered", "knee 8/s", "sweep p99", "output tokens/s",
        "operations per byte of memory read", "linear int8", "milliseconds a step", "simulated / measured",
        "tpot (n = 40)",
    ):  # fmt: skip
        assert re.search(rf"<text [^>]*>{re.escape(text)}</text>", html), text


def test_every_picture_is_a_png_too(drawn: tuple[str, Path]) -> None:
    _, folder = drawn
    images = sorted((folder / "png").iterdir())
    assert len(images) == len(PICTURES)
    assert all(image.read_bytes().startswith(b"\x89PNG") and image.stat().st_size > 5000 for image in images)


def test_the_table_of_rates_is_the_files(drawn: tuple[str, Path], files: dict[str, Path]) -> None:
    rows = [row for row in table_of(drawn[0], "latency-by-rate") if row[0] == "sweep"]
    points = json.loads(files["sweep"].read_text())["points"]
    assert goodput_knee(points) == 8.0
    for row, point, rate in zip(rows, points, ("8 (knee)", "60"), strict=True):
        latency = point["latency"]
        times = [number(latency[name][q] * 1e3) for name in ("ttft_s", "tpot_s") for q in ("p50", "p99")]
        goodput = point["goodput"]
        assert row[1:] == [rate, *times, number(goodput["requests_per_s"]), f"{goodput['share']:.0%}"]


def test_the_table_of_the_step_adds_up(drawn: tuple[str, Path], files: dict[str, Path]) -> None:
    rows = table_of(drawn[0], "step-account")
    batches = json.loads(files["step"].read_text())["batches"]
    for row, batch in zip(rows[1:], batches, strict=True):
        *parts, total, share = row[1:]
        assert float(total) == pytest.approx(batch["milliseconds"], rel=1e-3)
        assert sum(map(float, parts)) == pytest.approx(batch["milliseconds"], rel=2e-3)
        assert share == f"{batch['bandwidth_share']:.0%}"
    attention = rows[0].index("attention")
    wanted = batches[0]["milliseconds"] * (1 - batches[0]["host_share"]) * batches[0]["kernel_share"]["attention"]
    assert rows[1][attention] == number(wanted)


def test_the_table_of_the_roofline_is_the_files(drawn: tuple[str, Path], files: dict[str, Path]) -> None:
    rows = table_of(drawn[0], "roofline")[1:]
    kernels = [
        k for k in json.loads(files["kernels"].read_text())["kernels"] if k["gigaops_per_s"] and k["gigabytes_per_s"]
    ]
    assert len(rows) == len(kernels) > 20
    for row, kernel in zip(rows, kernels, strict=True):
        intensity = kernel["gigaops_per_s"] / kernel["gigabytes_per_s"]
        assert row[:4] == [kernel["kernel"], kernel["size"], number(intensity), number(kernel["gigaops_per_s"])]


def test_a_simulation_that_is_a_fifth_too_slow_is_20_percent_off(drawn: tuple[str, Path]) -> None:
    rows = table_of(drawn[0], "measured-and-simulated")[1:]
    assert {row[0] for row in rows} == {"sweep, 8/s", "sweep, 60/s"}
    assert {row[4] for row in rows if row[1].startswith("TTFT")} == {"+20.0%"}


def test_requests_are_counted_by_doublings_of_their_length(drawn: tuple[str, Path], files: dict[str, Path]) -> None:
    rows = [row for row in table_of(drawn[0], "ttft-by-length") if row[0] == "sweep, 8/s"]
    lengths = json.loads(files["sweep"].read_text())["points"][0]["samples"]["input_tokens"]
    assert sum(int(row[2]) for row in rows) == len(lengths) == 10
    for row in rows:
        low, high = map(int, row[1].split("–"))
        assert int(row[2]) == sum(low <= length <= high for length in lengths)


def test_results_of_the_first_form_are_still_read(files: dict[str, Path]) -> None:
    result = read_result(files["first_form"])
    kept = json.loads(files["first_form"].read_text())["results"]
    (run,) = result.runs
    assert run["latency"]["ttft_s"] == kept["ttft_s"] and run["goodput"]["share"] == pytest.approx(1.0)


def test_files_with_one_rate_each_are_a_sweep_together(files: dict[str, Path], tmp_path: Path) -> None:
    kept = json.loads(files["sweep"].read_text())
    paths = [tmp_path / f"{number}.json" for number in range(2)]
    for path, point in zip(paths, kept.pop("points"), strict=True):
        path.write_text(json.dumps(kept | point))
    picture = latency_by_rate([read_result(path) for path in paths])
    assert picture is not None
    assert [row[:2] for row in picture.rows] == [("serve fake", "8 (knee)"), ("serve fake", "60")]


def test_the_pareto_front() -> None:
    assert pareto_front([(2, 5), (1, 3), (3, 4), (1, 2), (4, 9)]) == [1, 0, 4]


def test_the_command_says_what_it_drew(
    capsys: pytest.CaptureFixture[str], files: dict[str, Path], tmp_path: Path
) -> None:
    page = tmp_path / "deep" / "page.html"
    done = call(capsys, "report", files["step"], "--output", page, "--json")
    (picture,) = json.loads(done.out)["pictures"]
    assert done.code == 0 and picture["name"] == "step-account" and page.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is no result file"),
        ("[1]", 'lacks "bench"'),
        ('{"a": 1}', 'lacks "bench"'),
        ('{"bench": "start", "total_s": 1}', "no picture of 'start' results; there are of serve, offline"),
        ('{"bench": "serve", "model": "m"}', "without requests, tokens, window, throughput, latency, goodput"),
        ('{"bench": "serve", "model": "m", "points": [{"latency": {}}]}', r"points\[0\]\.latency\.ttft_s"),
        ('{"bench": "serve", "points": []}', "without points"),
        ('{"bench": "step", "batches": [{"batch": 1}]}', r"without model, precision, batches\[0\]\.milliseconds"),
        ('{"bench": "kernels", "kernels": 5}', "not the form of a kernels result"),
        ('{"bench": "score", "groups": {"tpot": {"n": 3}}}', r"groups\.tpot\.median"),
        ('{"bench": "step", "model": NaN}', "NaN is not a number"),
        ('{"bench": "step", "model": 1e999}', "1e999 is not a number"),
        (
            '{"bench": "step", "model": "m", "precision": "p", "batches": [{"batch": 1, "milliseconds": "9", '
            '"bandwidth_share": 1, "host_share": 0, "kernel_share": {}}]}',
            "not the form of a step result",
        ),
    ],
)
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"odd\.json.*{message}"):
        make_report([path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.json: No such file"):
        make_report([tmp_path / "gone.json"], tmp_path / "report.html")


def test_results_that_hold_nothing_to_draw(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to draw: .* needs a sweep"):
        make_report([files["first_form"]], tmp_path / "report.html")


def test_a_missing_matplotlib_is_said_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SetupError, match=r"pip install tokenmill\[report\]"):
        make_report([files["step"]], tmp_path / "report.html")
