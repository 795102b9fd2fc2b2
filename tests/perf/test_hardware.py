"""The catalogue: names, files, and the checks that catch the mistakes which circulate."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tokenmill.core.errors import ConfigError
from tokenmill.perf.hardware import Hardware, Link, catalogue, check, find, load
from tokenmill.perf.hardware.catalogue import check_catalogue, lookup, read
from tokenmill.perf.hardware.write import to_toml

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "perf"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the collected measurements are not here")

MINIMAL = """
[[device]]
name = "Thing"
kind = "gpu"
vendor = "someone"
family = "hopper"
memory_bytes = 85_899_345_920
memory_bytes_per_s = 3e12
peaks = { fp32 = 60e12, bf16 = 800e12, fp8 = 1600e12 }
source = "a datasheet"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "thing.toml"
    path.write_text(text)
    return path


def problems(device: Hardware, known: Hardware | None = None) -> set[str]:
    return {finding.field for finding in check([device], "user.toml", known=lambda name: known)}


# ---- the catalogue ---------------------------------------------------------------------------------------


def test_nothing_that_ships_looks_wrong() -> None:
    assert not [str(finding) for finding in check_catalogue()]
    assert len(catalogue()) >= 47


def test_every_figure_says_where_it_is_from() -> None:
    for device in catalogue().values():
        assert device.source, device.name
        assert all(figure.source for figure in device.observed.values()), device.name


@needs_data
def test_every_row_of_the_table_is_here_with_its_figures() -> None:
    columns = {"fp32": "fp32_tflops", "fp8": "fp8_dense_tflops", "int8": "int8_dense_tops", "fp4": "fp4_dense_tflops"}
    with (DATA / "hardware_specs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        device = catalogue()[row["name"]]
        assert device.memory_bytes_per_s == pytest.approx(float(row["hbm_gbs"]) * 1e9)
        assert device.peaks.get("bf16", device.peaks.get("fp16")) == pytest.approx(
            float(row["bf16_dense_tflops"]) * 1e12
        )
        for name, column in columns.items():
            assert device.peaks.get(name) == (pytest.approx(float(row[column]) * 1e12) if row[column] else None)
        if row["link_gbs_per_dir"]:
            assert device.link is not None
            assert device.link.bytes_per_s == pytest.approx(float(row["link_gbs_per_dir"]) * 1e9)
        assert (device.source, device.confidence) == (row["source"], row["confidence"])


@needs_data
def test_every_name_in_the_measurements_is_found() -> None:
    names = set()
    for path in DATA.glob("published_perf*.csv"):
        with path.open() as file:
            names |= {row["hardware"] for row in csv.DictReader(file)}
    mixed = {name for name in names if any(word in name for word in (" + ", " and ", ", "))}
    assert len(names) > 60
    for name in names - mixed:
        assert find(name).name in catalogue(), name
    for name in mixed:
        with pytest.raises(ConfigError, match="is several devices"):
            find(name)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("h200_sxm", "H200-SXM-141GB"),
        ("H200-SXM-141GB", "H200-SXM-141GB"),
        ("H200 SXM", "H200-SXM-141GB"),
        ("h100", "H100-SXM-80GB"),
        ("NVIDIA H100-PCIe-80GB", "H100-PCIe-80GB"),
        ("AMD Instinct MI355X 288GB HBM3e (x87)", "MI355X"),
        ("Intel(R) Xeon(R) Platinum 8592+", "Xeon-8592+ (EMR 1S)"),
        ("AMD EPYC 9654 96-Core Processor", "EPYC-9654 (Genoa 1S)"),
        ("M3 Max 40\N{NON-BREAKING HYPHEN}Core GPU 64GB", "Apple-M3-Max-64GB"),
    ],
)
def test_names_as_people_write_them(name: str, device: str) -> None:
    assert find(name).name == device


def test_a_power_cap_in_the_name_is_kept() -> None:
    capped = find("A100-SXM-80GB (330 W cap)")
    assert (capped.name, capped.power_limit_w, capped.tdp_w) == ("A100-SXM-80GB", 330, 400)
    assert find("AMD Instinct MI355X 288GB HBM3e (Power Cap 1000 W)").power_limit_w == 1000
    assert find("A100-SXM-80GB").power_limit_w is None


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no device 'H201-SXM'; did you mean .*H200-SXM-141GB"):
        find("H201-SXM")
    with pytest.raises(ConfigError, match="`tokenmill hardware` lists"):
        find("abacus")


# ---- peaks and observations ------------------------------------------------------------------------------


def test_what_computes_a_type_that_has_no_units() -> None:
    t4, a100 = find("T4"), find("A100")
    assert "bf16" not in t4.peaks and "bf16" not in find("V100").peaks
    assert (t4.computes("bf16"), a100.computes("fp8"), a100.computes("fp16")) == ("fp16", "bf16", "bf16")
    assert a100.peak("fp4") == a100.peak("bf16") == 312e12
    with pytest.raises(ConfigError, match=r"arithmetic must be one of .*, not 'fp7'"):
        a100.peak("fp7")
    with pytest.raises(ConfigError, match=r"Apple-M1-8GB: peaks.bf16 is not given"):
        replace(find("M1"), peaks={"int8": 1e12}).peak("bf16")


def test_observations_go_to_the_family_and_are_trusted_less_there() -> None:
    h100, h20, h200 = find("H100"), find("H20"), find("H200")
    assert h100.observed["gemm_peak_share_bf16"].value == h20.observed["gemm_peak_share_bf16"].value
    assert h100.observed["gemm_peak_share_bf16"].confidence == "high"
    assert h20.observed["gemm_peak_share_bf16"].confidence == "medium"
    assert h200.observed["gemm_bandwidth_share_bf16"].value < h100.observed["gemm_bandwidth_share_bf16"].value
    assert "attention_peak_share" in h200.observed, "from the family"
    assert find("MI300X").observed == {}
    assert find("MI300X").seen("gemm_peak_share_bf16", 0.5) == 0.5


def test_a_link_that_was_measured_has_its_latency() -> None:
    nvlink, pcie = find("H100").link, find("L40S").link
    assert nvlink is not None and pcie is not None
    assert nvlink.latency_s == find("H100").observed["all_reduce_latency_s"].value < pcie.latency_s
    assert "all_reduce_latency_s" not in find("L40S").observed


# ---- checks ----------------------------------------------------------------------------------------------


def test_sparse_peaks_that_circulate() -> None:
    """L40S FP8 1466, H100 fp16 1979, MI300X bf16 2615: each is the figure with sparsity, or of another type."""
    l40s, h100, mi300x = find("L40S"), find("H100"), find("MI300X")
    assert problems(replace(l40s, peaks={**l40s.peaks, "fp8": 1466e12})) == {"peaks.fp8"}
    assert "peaks.fp16" in problems(replace(h100, peaks={"fp32": 67e12, "fp16": 1979e12}))
    assert "peaks.bf16" in problems(replace(mi300x, peaks={**mi300x.peaks, "bf16": 2615e12}))
    assert "peaks.bf16" in problems(replace(h100, peaks={"bf16": 1979e12, "fp8": 3958e12}), known=h100)
    assert "peaks.fp8" in problems(replace(h100, peaks={"bf16": 989e12, "fp8": 3958e12}, family="unheard-of"))
    assert "peaks.fp8" in problems(replace(find("A100"), peaks={"bf16": 312e12, "fp8": 624e12}))


def test_consumer_cards_have_their_own_ratios() -> None:
    """GeForce halves products with wide sums, so int8 is four times bf16; the professional card does twice."""
    rtx, pro = find("RTX 4090"), find("RTX 6000 Ada")
    assert rtx.family == pro.family and not problems(rtx) and not problems(pro)
    assert problems(replace(pro, peaks={**pro.peaks, "int8": 1457e12})) == {"peaks.int8"}


@pytest.mark.parametrize("num_bytes", [80e9, 80 * 2.0**30 * 1.0737])
def test_gb_and_gib(num_bytes: float) -> None:
    assert "memory_bytes" in problems(replace(find("H100"), memory_bytes=num_bytes))


def test_bandwidth_in_gib_of_a_known_device() -> None:
    h100 = find("H100")
    assert problems(replace(h100, memory_bytes_per_s=3350 * 2.0**30), known=h100) == {"memory_bytes_per_s"}


def test_both_directions_of_a_link() -> None:
    h100 = find("H100")
    assert problems(replace(h100, link=Link("NVLink4", 900e9, 8))) == {"link.bytes_per_s"}
    mi300x = find("MI300X")
    both = replace(mi300x, link=Link("Infinity Fabric", 896e9, 8))
    assert problems(both, known=mi300x) == {"link.bytes_per_s"}
    host = replace(h100, host_link_bytes_per_s=128e9)
    assert problems(host, known=h100) == {"host_link_bytes_per_s"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_figures_that_are_none(value: float) -> None:
    h100 = find("H100")
    assert problems(replace(h100, memory_bytes=value)) == {"memory_bytes"}
    assert problems(replace(h100, peaks={**h100.peaks, "fp8": value})) == {"peaks.fp8"}
    assert problems(replace(h100, tdp_w=value)) == {"tdp_w"}


def test_missing_sources_and_impossible_shares() -> None:
    h100 = find("H100")
    assert problems(replace(h100, source=" ")) == {"source"}
    figure = h100.observed["attention_peak_share"]
    assert problems(replace(h100, observed={"attention_peak_share": replace(figure, source="")})) == {
        "observed.attention_peak_share.source"
    }
    assert problems(replace(h100, observed={"attention_peak_share": replace(figure, value=1.2)})) == {
        "observed.attention_peak_share.value"
    }
    assert problems(replace(h100, power_limit_w=800.0)) == {"power_limit_w"}


def test_a_finding_says_what_where_and_why_and_can_be_confirmed() -> None:
    wrong = replace(find("L40S"), peaks={"bf16": 362e12, "fp8": 1466e12})
    (finding,) = check([wrong], "mine.toml")
    assert str(finding).startswith("mine.toml: L40S: peaks.fp8 = 1.466e+15 is 4.05 × bf16")
    assert not check([replace(wrong, confirmed=("peaks.fp8",))], "mine.toml")
    assert check([replace(wrong, peaks={"fp8": -1.0}, confirmed=("peaks.fp8",))], "mine.toml"), "a figure all the same"


# ---- files of users --------------------------------------------------------------------------------------


def test_a_file_is_a_device(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    assert find(str(path)) == load(path)
    assert load(path).memory_bytes_per_s == 3e12
    assert load(path).observed["gemm_peak_share_bf16"].value == find("H100").observed["gemm_peak_share_bf16"].value


def test_a_file_may_say_only_what_differs(tmp_path: Path) -> None:
    mine = load(written(tmp_path, '[[device]]\nbased_on = "h100"\nprice_per_hour = 2.5\nsource = "our contract"'))
    assert mine == replace(find("h100"), price_per_hour=2.5, source="our contract", aliases=(), note="")
    capped = '[[device]]\nbased_on = "h100"\nname = "mine"\npeaks = { fp8 = 1900e12 }\nsource = "us"'
    assert load(written(tmp_path, capped)).peaks == {**find("h100").peaks, "fp8": 1900e12}


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("memory_bytes = 85_899_345_920", "", "Thing: memory_bytes is missing"),
        (
            "memory_bytes_per_s",
            "memory_byte_per_s",
            "unknown field 'memory_byte_per_s'; did you mean 'memory_bytes_per_s'",
        ),
        ("fp8 =", "fp9 =", "Thing: peaks: unknown field 'fp9'"),
        ("800e12", "nan", "Thing: peaks.bf16 must be a finite number, not nan"),
        ("800e12", '"fast"', "Thing: peaks.bf16 must be a number, not 'fast'"),
        ("3e12", "-3e12", "Thing: memory_bytes_per_s = -3e.12 must be a positive number"),
        ("1600e12", "3200e12", "Thing: peaks.fp8 = 3.2e.15 is 4 × bf16"),
        ('"a datasheet"', '""', "Thing: source = '' says where the figures are from"),
        ('"gpu"', '"toaster"', "Thing: kind must be one of gpu, .*, not 'toaster'"),
        ("[[device]]", "[device]", "no \\[\\[device\\]\\] in it"),
        ("[[device]]", "[[device", "not TOML"),
        ('source = "a', 'link = { name = "x", domain = 8 }\nsource = "a', "Thing: link.bytes_per_s is missing"),
        ('source = "a', 'based_on = "h1000"\nsource = "a', "no device 'h1000'"),
        ('source = "a', 'observed = { x = { low = 1 } }\nsource = "a', "observed.x.value is missing"),
        ('source = "a', 'devices_per_node = 0\nsource = "a', "devices_per_node must be a whole number of at least 1"),
    ],
)
def test_bad_files_name_the_field(tmp_path: Path, wrong: str, right: str, message: str) -> None:
    assert wrong in MINIMAL
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path, MINIMAL.replace(wrong, right, 1)))


def test_a_file_of_none_or_two_devices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.toml")
    two = MINIMAL + MINIMAL.replace("Thing", "Other")
    with pytest.raises(ConfigError, match=r"one .* is needed, there are 2"):
        load(written(tmp_path, two))
    with pytest.raises(ConfigError, match="'Thing' is there twice"):
        load(written(tmp_path, MINIMAL + MINIMAL))


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    for device in catalogue().values():
        assert read(written(tmp_path, to_toml(device))) == (device,)
        assert lookup(device.name) is device
