"""The report's page in a browser: nothing on it is wider than the window or the paper."""

import html
import json
import re
import shutil
import subprocess

import pytest
from helpers.records import write_run

from parle_hpc.paper import pages

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium, chromium-browser or google-chrome is installed")
OFFLINE = ("quic", "background-networking", "component-update", "sync")
# a frame may be narrower than any window of Chromium, and has the page of that width
FRAME = '<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>'
MEASURE = """<script>
const measure = ({contentWindow: {innerWidth, document: {documentElement: page}}}) => ({
  width: innerWidth,
  room: page.clientWidth,
  needs: page.scrollWidth,
  tables: Array.from(page.querySelectorAll("table"), ({parentElement: {clientWidth, scrollWidth}}) =>
    ({room: clientWidth, needs: scrollWidth})),
  figures: Array.from(page.querySelectorAll("img"), figure => figure.getBoundingClientRect().right),
})
addEventListener("load", () => {
  document.body.textContent = JSON.stringify(Array.from(document.querySelectorAll("iframe"), measure))
})
</script>"""
# landscape Letter within its margins of 12 mm, the narrower of the usual two, in pixels of 1/96 inch
PAPER = int(96 * (11 - 24 / 25.4))


def chromium(profile, *arguments):
    """What a headless Chromium prints, without a network."""
    flags = [f"--disable-{name}" for name in ("gpu", *OFFLINE)]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={profile}", *flags]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200, check=True).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with both tables of the paper, figures of both kinds, and names and numbers as long as they get."""
    folder = tmp_path_factory.mktemp("report")
    small = ("allcnn_cifar10", "--model.channels", "48", "--data.samples", "5000", "--algorithm.rho0")
    kinds = [
        ("lenet_mnist", "--replicas", "3"),
        ("wrn_cifar10", "--algorithm.name", "elastic_sgd", "--replicas", "3"),
        ("allcnn_cifar10_split6", "--replicas", "6"),
        *((*small, rho, "--algorithm.gamma0", "1000") for rho in ("0.25", "0.5", "0.75")),
        (*small, "0.25"),
    ]
    folders = [
        write_run(folder / f"{i}-{seed}", [90] * 399 + [12 + 4 * seed], "--recipe", *kind, seed=seed, finished=seed < 2)
        for i, kind in enumerate(kinds)
        for seed in range(3)
    ]
    return pages.write(folders, folder / "out")


@pytest.fixture(scope="module")
def measured(page, tmp_path_factory):
    """{width: what is measured in a window of it}, and for "print" on paper."""
    text = page.read_text()
    printed = text.replace("@media print", "@media all")
    assert printed != text
    frames = [(400, text), (1100, text), (1600, text), (PAPER, printed)]
    folder = tmp_path_factory.mktemp("browser")
    copy = folder / "frames.html"
    copy.write_text(MEASURE + "".join(FRAME.format(width=w, page=html.escape(t)) for w, t in frames), encoding="utf-8")
    dump = chromium(folder / "profile", "--dump-dom", copy.as_uri())
    found = json.loads(html.unescape(re.search("<body>(.*)</body>", dump, re.DOTALL)[1]))
    assert [frame["width"] for frame in found] == [width for width, _ in frames]
    return dict(zip((400, 1100, 1600, "print"), found, strict=True))


@pytest.mark.parametrize("width", [400, 1100, 1600, "print"])
def test_the_page_is_no_wider_than_the_window(measured, width):
    frame = measured[width]
    assert frame["needs"] <= frame["room"]
    assert len(frame["figures"]) == 5
    assert max(frame["figures"]) <= frame["room"]


@pytest.mark.parametrize("width", [1100, 1600, "print"])
def test_every_table_is_seen_whole(measured, width):
    tables = measured[width]["tables"]
    assert len(tables) == 3
    assert all(table["needs"] <= table["room"] for table in tables), tables


def test_paper_lies_on_its_side(page, tmp_path):
    paper = tmp_path / "page.pdf"
    chromium(tmp_path / "profile", f"--print-to-pdf={paper}", page.as_uri())
    sizes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", paper.read_bytes())
    assert sizes
    assert all(float(width) > float(height) for width, height in sizes)
