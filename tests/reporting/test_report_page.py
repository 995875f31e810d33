"""The page in a real browser, at the widths of a phone and of a desktop, light and dark."""

import shutil

import pytest

from adakron_export.reporting.report import report_content, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
# Everything that is drawn, and where: a mark must have a size, a colour of its own, and stand within its plot.
LOST_MARKS = """
return [...document.querySelectorAll('svg')].flatMap(plot => {
  const frame = plot.getBoundingClientRect();
  const marks = [...plot.querySelectorAll('circle, rect, line, polyline, text')];
  if (!marks.length || frame.width < 40 || frame.height < 10) return [plot.outerHTML.slice(0, 200)];
  return marks.filter(mark => {
    const box = mark.getBoundingClientRect();
    const style = getComputedStyle(mark);
    return box.width + box.height < 1 || box.left < frame.left - 20 || box.right > frame.right + 20
      || (style.fill === 'none' && style.stroke === 'none');
  }).map(mark => mark.outerHTML);
});
"""
# Boxes that hide a part of what is in them.
CUT = """
return [...document.querySelectorAll('.wide, td, th, .label, li, p, h3, pre')]
  .filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.outerHTML.slice(0, 120));
"""
# The contrast of text and ground, after WCAG 2.1.
CONTRAST = """
const light = text => {
  const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = light(getComputedStyle(document.body).backgroundColor);
return [...document.querySelectorAll('h1, h2, p, td, dt, dd, summary, .label, .number, .bad')].map(element => {
  const ink = light(getComputedStyle(element).color);
  return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
});
"""


def check(value, limit, passed=True):
    return {"value": value, "limit": limit, "passed": passed}


def parity():
    def row(batch, error, passed=True):
        return {"batch": batch, "shape": [8, 128], "output": "logits", "passed": passed, "non_finite": 0,
                "metrics": {"max_abs_error": check(error, 1e-4, passed)}}  # fmt: skip

    layers = [
        {"layer": f"bert.encoder.layer.{index}.output.a_rather_long_name_of_a_module", "error": error, "scale": 3.0,
         "limit": 1e-5, "diverges": error == "inf" or error > 1e-5}
        for index, error in enumerate([0.0, 1e-7, 3e-6, 2e-3, "inf"])
    ]  # fmt: skip
    flip = {"place": "dev.tsv:17", "text": "word " * 12, "label": "good", "reference": "good", "candidate": "bad"}
    pair = {"metric": "accuracy", "reference": 0.9, "candidate": 0.85, "difference": -0.05}
    return {
        "passed": False, "max_abs_error": "inf", "reference": "eager PyTorch fp32", "candidate": "onnxruntime",
        "tolerance": {}, "seed": 0, "overflow": None, "notes": ["a note"], "layers": [], "repeat": "adakron-export x",
        "rows": [row("one-token", 2e-6), row("realistic", "inf", passed=False)],
        "accuracy": {"source": "dev.tsv", "examples": 20, "drop": 0.05, "max_drop": 0.005, "passed": False,
                     "metrics": [pair], "flips": [flip]},
        "divergence": {"batch": "realistic", "layer": layers[3]["layer"], "part": "adapter", "node": "MatMul_7",
                       "cause": "its weight differs", "layers": layers},
    }  # fmt: skip


def latency():
    def row(side, scale, speedup):
        return {"side": side, "shape": "8x128", "runs": 90, "p50_ms": 1.5 * scale, "p90_ms": 2 * scale,
                "p99_ms": 4 * scale, "mean_ms": 1.6 * scale, "texts_per_second": 640 / scale, "first_ms": 9 * scale,
                "quantiles_ms": [scale * (1 + 0.1 * step) for step in range(21)], "round_ms": [1.5 * scale],
                "speedup": speedup}  # fmt: skip

    def side(label):
        return {"label": label, "path": "/a/rather/long/path/to/an/artifact", "runtime": "onnxruntime", "load_s": 1.5,
                "peak_mb": None}  # fmt: skip

    interval = {"estimate": 3.1, "low": 2.9, "high": 3.4}
    load = {"side": "out", "shape": "8x128", "scenario": "50 requests/s", "requests": 9, "unanswered": 0,
            "p50_ms": 2.0, "p90_ms": 3.0, "p99_ms": 9.0, "requests_per_second": 49.0}  # fmt: skip
    return {
        "passed": False, "reference": "eager", "sides": [side("eager"), side("out")],
        "latencies": [row("eager", 3.0, None), row("out", 1.0, interval)],
        "loads": [load, {**load, "scenario": "5000 requests/s", "p90_ms": "inf", "p99_ms": "inf", "unanswered": 70}],
        "regressions": [{"side": "out", "shape": "8x128", "limit": 1.05, "passed": False,
                         "slowdown": {"estimate": 1.12, "low": 1.08, "high": 1.15}}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    content = report_content(
        machine={"processor": "a processor", "threads": None}, versions={"torch": "2.13.0"}, repeat="pytest " * 30,
        subject={"name": "an-artifact", "task": "text-classification", "target": "portable", "dtype": "int8"},
        parity=parity(), latency=latency(),
    )  # fmt: skip
    return write_report(tmp_path_factory.mktemp("page"), content)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in SWITCHES:
        options.add_argument(switch)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_the_page_is_drawn_whole(browser, page, width, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")

    assert browser.get_log("browser") == []
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
    assert browser.execute_script("return document.querySelectorAll('.plot').length") == 6
    assert browser.execute_script(LOST_MARKS) == []
    assert browser.execute_script(CUT) == []
    assert browser.title == "FAILED: an-artifact (text-classification, portable, int8)"
    assert "an-artifact (text-classification, portable, int8)" in browser.find_element("tag name", "header").text
    hidden = browser.execute_script("return [...document.querySelectorAll('svg title')].map(each => each.textContent)")
    shown = browser.find_element("tag name", "body").text
    assert [text for text in hidden if text not in shown] == []
    ratios = browser.execute_script(CONTRAST)
    assert len(ratios) > 50
    assert min(ratios) >= 4.5
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 27)"}[scheme]
