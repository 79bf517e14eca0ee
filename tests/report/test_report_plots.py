import base64
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from assay.records import Finding
from assay.report.curves import best_of_n_curve, best_of_n_figure, calibration_figure, metric_figures, root_kl
from assay.report.plots import BLUE, Line, Panel, line_plot, smooth
from assay.settings import InputError


def figure(y=(1.0, 3.0, 2.0), **changes):
    panels = [Panel("reward", [Line("reward", [0, 1, 2], y)])]
    return line_plot(panels, name="x", x_label="step", caption="From metrics.jsonl.", **changes)


def test_svg_is_well_formed_stable_and_fetches_nothing():
    first, second = figure(), figure()
    assert first.svg == second.svg
    root = ElementTree.fromstring(first.svg)
    names = {element.tag.split("}")[1] for element in root.iter()}
    assert names <= {"svg", "g", "defs", "path", "use", "style", "clipPath", "rect", "text"}
    for element in root.iter():
        for key, value in element.attrib.items():
            assert "href" not in key or value.startswith("#")
            assert not key.startswith("on")
    assert not re.search(r"<metadata|<!DOCTYPE|<\?xml|\d{4}-\d\d-\d\d", first.svg)


def test_dark_differs_in_colour_only():
    drawn = figure()
    light, dark = (base64.b64decode(uri.split(",")[1]).decode() for uri in (drawn.light, drawn.dark))
    assert light == drawn.svg
    assert BLUE in light and BLUE not in dark
    colour = re.compile("#[0-9a-f]{6}")
    assert colour.sub("", light) == colour.sub("", dark)
    assert len(colour.findall(light)) == len(colour.findall(dark)) > 0


def test_alt_text_tells_the_figures():
    assert figure().alt == "Line chart against step. reward: 1 at 0, 2 at 2; highest 3 at 1."
    assert figure((math.nan, 3.0, math.nan)).alt.endswith("reward: 3 at 1, 3 at 1; highest 3 at 1.")
    assert figure((math.nan,) * 3).alt.endswith("reward: no values.")


def test_a_name_is_not_read_as_mathematics():
    line_plot([Panel(r"$\frac{$", [Line("$a", [0], [1]), Line("$b$", [0], [2])])], name="x", x_label="step", caption="")


def test_lines_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"line 'x': x, y and the band must be of one length; got \[2, 3\]"):
        Line("x", [1, 2], [1, 2, 3])


def test_running_mean_by_hand():
    assert smooth([1, 2, 6, 3], 1).tolist() == [1, 2, 6, 3]
    assert smooth([1, 2, 6, 3, 0], 3).tolist() == [1.5, 3, 11 / 3, 3, 1.5]
    np.testing.assert_array_equal(smooth([1, math.nan, 5], 3), [1, math.nan, 5])


@pytest.mark.parametrize(("kl", "root"), [(9.0, 3.0), (0.0, 0.0), (-0.2, 0.0)])
def test_root_of_kl(kl, root):
    assert root_kl(kl) == root


def test_root_of_an_unknown_kl_is_unknown():
    assert math.isnan(root_kl(None)) and math.isnan(root_kl(math.nan))


def names(rows):
    large, small, num_left_out = metric_figures(rows)
    return [figure.name for figure in large], [figure.name for figure in small], num_left_out


def test_what_is_logged_is_drawn_and_nothing_else():
    assert names([]) == ([], [], 0)
    assert names([{"step": 0, "note": "text", "flag": True}]) == ([], [], 0)
    assert names([{"step": 0, "loss": 0.7}, {"step": 1, "loss": 0.6, "accuracy": None}]) == ([], ["-loss"], 0)
    assert names([{"step": 0, "reward": 1.0}]) == (["reward-step"], [], 0)
    rows = [{"step": step, "reward": 1.0, "oracle": 0.5, "kl": step / 2, "zeta": 1, "entropy": 2} for step in range(3)]
    assert names(rows) == (["reward-step", "reward-kl"], ["-kl", "-entropy", "-zeta"], 0)


def test_stages_are_drawn_apart():
    rows = [{"step": 0, "stage": "reward", "loss": 0.7}, {"step": 0, "stage": "policy", "reward": 0.1, "kl": 0.0}]
    assert names(rows) == (["policy-reward-step", "policy-reward-kl"], ["reward-loss", "policy-kl"], 0)


def test_columns_beyond_the_page_are_counted():
    large, small, num_left_out = metric_figures([{"step": 0, **{f"m{place:02}": place for place in range(25)}}])
    assert (len(large), len(small), num_left_out) == (0, 18, 7)


def test_the_kl_figure_takes_rows_that_hold_both():
    rows = [{"step": 0, "kl": 0.0}, {"step": 1, "kl": 4.0, "reward": 1.5}, {"step": 2, "reward": 9.0}]
    large, _, _ = metric_figures(rows)
    assert large[1].alt.endswith("reference (√nats). reward: 1.50 at 2, 1.50 at 2; highest 1.50 at 2.")


def test_best_of_n_tells_both_curves():
    drawn = best_of_n_figure({"n": [1, 2, 4], "reward": [0.0, 1.0, 2.0], "oracle": [0.0, 0.5, 0.25]})
    assert "reward: 0 at 1, 2 at 4; highest 2 at 4." in drawn.alt
    assert "oracle: 0 at 1, 0.250 at 4; highest 0.500 at 2." in drawn.alt
    assert "audit.json" in drawn.caption


def test_the_curve_is_made_of_findings_by_n():
    points = {"best_of_n/reward/10": 3.0, "best_of_n/reward/2": 1.0, "best_of_n/oracle/2": 0.5, "accuracy": 0.7}
    findings = [
        Finding(probe=name, value=value, n=9, interval=(value - 1, value + 1)) for name, value in points.items()
    ]
    curve = best_of_n_curve(findings)
    assert {key: curve[key] for key in ("n", "reward", "reward_low", "reward_high")} == {
        "n": [2, 10], "reward": [1, 3], "reward_low": [0, 2], "reward_high": [2, 4],
    }  # fmt: skip
    np.testing.assert_array_equal(curve["oracle"], [0.5, math.nan])
    assert best_of_n_curve(findings[-1:]) == {}
    assert best_of_n_figure(curve).alt.endswith("oracle: 0.500 at 2, 0.500 at 2; highest 0.500 at 2.")


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ({"reward": [1]}, "no list 'n'"),
        ({"n": [1, 2]}, "no list 'reward', 'oracle' or 'length'"),
        ({"n": [1, 2], "reward": [0.5]}, "of one length"),
    ],
)
def test_a_bad_best_of_n_curve_is_named(curve, words):
    with pytest.raises(InputError, match=rf"audit\.json, best_of_n: .*{words}"):
        best_of_n_figure(curve)


def test_calibration_tells_its_bins():
    drawn = calibration_figure({"confidence": [0.55, 0.9], "accuracy": [0.5, 0.75], "count": [10, 30]})
    assert drawn.alt == (
        "Reliability diagram: at confidence 0.550 accuracy 0.500 (n = 10); at confidence 0.900 accuracy 0.750 (n = 30)."
    )
    with pytest.raises(InputError, match="no list 'count'"):
        calibration_figure({"confidence": [0.5], "accuracy": [0.5]})
    with pytest.raises(InputError, match="different length"):
        calibration_figure({"confidence": [0.5], "accuracy": [0.5], "count": [1, 2]})
