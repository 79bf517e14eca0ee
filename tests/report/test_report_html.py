import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from assay.report.html import write_report
from assay.report.run import RunDirectory, Sample, write_json
from assay.settings import InputError

HOSTILE = [
    "<script>alert(1)</script>",
    "</script></style></title></div></table></textarea><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<svg/onload=alert(1)><iframe src=//evil.example></iframe>",
    "--><!--[if IE]><base href='//evil.example'>",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[31mred\x1b]8;;https://evil.example\x07link\x1b]8;;\x07",
    "\u202egpj.exe\u202c \u2066x\u2069",
    "nul\x00 zero\u200bwidth \ud800",
    "javascript:alert(1) &lt;b&gt; &#60;i&#62;",
]


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.comments: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.comments.append(data)


def page_of(run: RunDirectory) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def assert_offline(page: Page) -> None:
    assert not {"script", "iframe", "object", "embed", "link", "base", "form", "input", "svg"} & set(page.tags)
    for tag, key, value in page.attributes:
        assert not key.startswith("on"), (tag, key)
        assert key != "style"
        if key in ("src", "srcset"):
            assert value.startswith("data:image/svg+xml;base64,")
        if key == "href":
            assert re.fullmatch("#[a-z]+", value)


def test_a_full_run_is_told_in_full(full_run):
    page = page_of(full_run)
    assert_offline(page)
    words = " ".join(page.text.split())
    for said in (
        "Gain over the base model +0.260 95% interval +0.170 to +0.350, n = 200. Better than the base",
        "Gate on the reward failed The reward missed 1 of 3 limits",
        "Distance from the reference 8.76 nats",
        "length, within prompt: 0.43 is not <= 0.3",
        "The gate was overridden",
        "At the last step 34.8% of the responses were cut",
        "clip_high 0.28",
        "learning_rate 1e-06",
        "0.668 to 0.756 ≥ 0.6 412 passed",
        "dropped.identical 3",
        "max_new_tokens 64",
        "120 lines of metrics.jsonl",
        "The first 3 of 3",
        "reward 1.73 · oracle 0.660",
        "data.sha256 " + "ab" * 32,
        "environment of reward, policy",
        "policy/model.safetensors 1.53 MB",
    ):
        assert said in words
    assert "not run" not in words.lower()


def test_tables_and_figures_are_accessible(full_run):
    page = page_of(full_run)
    assert page.tags.count("table") == 4  # judged, reported, evaluation, files
    assert all(("th", "scope", scope) in page.attributes for scope in ("col", "row"))
    assert page.tags.count("th") == sum(tag == "th" and key == "scope" for tag, key, _ in page.attributes)
    alts = [value for tag, key, value in page.attributes if (tag, key) == ("img", "alt")]
    assert len(alts) == page.tags.count("img") == page.tags.count("figcaption") == 9
    assert all(len(alt) > 30 for alt in alts)
    assert ("html", "lang", "en") in page.attributes


def test_the_policy_forbids_scripts_and_requests(full_run):
    page = page_of(full_run)
    (policy,) = [v for tag, key, v in page.attributes if (tag, key) == ("meta", "content") and "default-src" in v]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    style = re.search(r"<style>(.*?)</style>", full_run.report.read_text(encoding="utf-8"), re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]


def test_an_empty_folder_says_that_nothing_ran(tmp_path):
    run = RunDirectory(tmp_path / "bare")
    run.path.mkdir()
    page = page_of(run)
    assert_offline(page)
    words = " ".join(page.text.split())
    for name in ("config.yaml", "audit.json", "evaluation.json", "metrics.jsonl", "samples.jsonl"):
        assert f"Not run: there is no {name}" in words
    assert "no provenance.json" in words
    assert not {"img", "table"} & set(page.tags)
    assert words.count("not run") == 3


def test_an_almost_empty_run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.append_metrics(0, {"loss": 0.69})
    write_json(run.audit, {"findings": []})
    run.write_samples([Sample(prompt="Hi", base="", policy=" ")])
    words = " ".join(page_of(run).text.split())
    assert "no verdict" in words and "The audit holds no findings." in words and "Best of n: not run." in words
    assert words.count("(empty)") == 2


def test_no_folder_is_the_users_error(tmp_path):
    with pytest.raises(InputError, match="no such run directory"):
        write_report(RunDirectory(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "expected an object with a list 'findings'"),
        ({"findings": [{"probe": "x", "value": 1.0, "n": 1}, {"probe": "x"}]}, r"findings\[1\]: not a finding"),
        ({"findings": [{"probe": "x", "value": 1.0, "n": 1, "typo": 2}]}, r"findings\[0\]: not a finding .*typo"),
        ({"findings": [{"probe": "x", "value": "high", "n": 1}]}, r"findings\[0\]: not a finding .*value"),
    ],
)
def test_a_bad_audit_is_named(tmp_path, data, words):
    run = RunDirectory(tmp_path)
    write_json(run.audit, data)
    with pytest.raises(InputError, match=rf"audit\.json.*{words}"):
        write_report(run)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(tmp_path, filled, text):
    plain, hostile = (
        page_of(filled(RunDirectory(tmp_path / str(place) / "run"), num_steps=0, text=content))
        for place, content in enumerate(["The weather was fine.", text])
    )
    assert_offline(hostile)
    assert hostile.tags == plain.tags
    assert Counter(key for _, key, _ in hostile.attributes) == Counter(key for _, key, _ in plain.attributes)
    assert hostile.comments == []
    raw = (tmp_path / "1" / "run" / "report.html").read_bytes()
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", raw)
    assert not re.search("[\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff]", raw.decode())


def test_every_place_of_a_text_is_shown(tmp_path, filled):
    page = page_of(filled(RunDirectory(tmp_path / "run"), num_steps=0, text="<q>\u202eevil\x1b"))
    shown = page.text.count("<q>⟦U+202E⟧evil⟦U+001B⟧")
    # config 1, reason 1, warning 1, finding 2, example 2, count 1, setting 1, provenance 1, samples 9
    assert shown == 19


def test_names_of_stages_and_metrics_are_inert_too(tmp_path):
    run = RunDirectory(tmp_path / "run")
    name = '"><script>alert(1)</script>\u202e$'
    run.append_metrics(0, {name: 1.0}, stage=name)
    run.record(name, **{"x": 1})
    page = page_of(run)
    assert_offline(page)
    assert page.text.count("<script>alert(1)</script>⟦U+202E⟧") >= 3


def test_bytes_are_stable(tmp_path, filled):
    runs = [filled(RunDirectory(tmp_path / str(place) / "run"), num_steps=3) for place in range(2)]
    first, second = (write_report(run).read_bytes() for run in runs)
    assert first == second
    assert write_report(runs[0]).read_bytes() == first


def test_long_texts_and_long_files_are_cut_with_a_count(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.write_samples([Sample(prompt="p", base="b" * 4100, policy="y")] * 15)
    words = page_of(run).text
    assert "The first 12 of 15" in words
    assert words.count("[100 more characters in the file]") == 12
    assert words.count("b" * 4000 + "\n[") == 12


def test_a_cut_last_line_is_said(full_run):
    with Path(full_run.metrics).open("a") as file:
        file.write('{"step": 120, "rew')
    words = page_of(full_run).text
    assert "120 lines of metrics.jsonl" in words
    assert "The last line of metrics.jsonl was cut off" in words


def test_artifacts_carry_their_hashes(full_run):
    import hashlib

    words = page_of(full_run).text
    assert hashlib.sha256(full_run.metrics.read_bytes()).hexdigest() in words
    assert hashlib.sha256(bytes(1_530_000)).hexdigest() in words
    assert "report.html" not in words


def test_provenance_of_another_shape_is_refused(tmp_path):
    run = RunDirectory(tmp_path)
    run.provenance.write_text(json.dumps([1]))
    with pytest.raises(InputError, match=r"provenance\.json: expected an object of stages"):
        write_report(run)
