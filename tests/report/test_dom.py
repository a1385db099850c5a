"""The page in a real browser: no script ran, nothing was fetched, no complaint, nothing wider than a telephone."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from compresskit.bench.record import Record
from compresskit.report.bench_page import bench_page
from compresskit.report.page import apply_page
from tests.report import browser
from tests.report.pages import hostile
from tests.report.records import HOSTILE, parts, record, steps

pytestmark = pytest.mark.skipif(browser.find() is None, reason=f"none of {', '.join(browser.NAMES)} is on PATH")

PROOF = (
    "<script>window.ran=1</script><img src='http://127.0.0.1:9/x' onerror='window.ran=1'><svg onload='window.ran=1'>"
)
# What sticks out of the window on the right, unless it is inside something that scrolls.
STICKING_OUT = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && e.tagName !== 'PRE' && !e.closest('pre')
  && e.getBoundingClientRect().width > 0 && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName)
"""
# The contrast of each text that is seen with the page, as WCAG has it.
CONTRAST = """
(() => {
  const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4); return .2126*v[0] + .7152*v[1] + .0722*v[2]; };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const worst = {};
  for (const e of document.querySelectorAll('p, td, th, h1, h2, li, a, summary, svg text')) {
    const style = getComputedStyle(e);
    const ink = light(e.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    const key = e.tagName + '.' + (e.getAttribute('class') || '');
    worst[key] = Math.min(worst[key] || 99, ratio);
  }
  return Object.entries(worst).filter(([, ratio]) => ratio < 4.5);
})()
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path_factory.mktemp("browser", numbered=True)) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = record()
    evil = [Record.model_validate(hostile(made.to_dict(), word)) for word in (PROOF, HOSTILE)]
    result = {
        "source": PROOF,
        "native": True,
        "before": {"parameters": 22_700_000, "disk_bytes": 90_900_000},
        "after": {"parameters": 21_000_000, "disk_bytes": 18_800_000},
        "fidelity": {"cosine_mean": 0.98, "cosine_min": 0.9},
        "reload_max_abs_diff": 0.0,
        "warnings": [PROOF],
        "gates": [{"metric": PROOF, "gate": "<= 0.3x", "found": 0.2, "unit": PROOF, "passed": True}],
        "recipe": {"model": PROOF},
        "steps": hostile(steps(), PROOF),
    }
    texts = {
        "plain": bench_page([("out.json", made)]),
        "hostile": bench_page([(PROOF, evil[0]), (HOSTILE, evil[1])]),
        "apply": apply_page(result, parts()),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("name", ["plain", "hostile", "apply"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_runs_nothing_is_fetched_nothing_sticks_out(
    tab: browser.Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    tab.open(pages[name], width=width, scheme=scheme)
    assert tab.ask("document.title").startswith(("int8", "compresskit", "Benchmark")), "the page is there"
    assert tab.ask("typeof window.ran") == "undefined"
    assert tab.requests() == [pages[name].as_uri()]
    assert tab.complaints() == []
    tags = "script, img, iframe, object, embed, link, form, image, foreignObject"
    assert tab.ask(f"document.querySelectorAll('{tags}').length") == 0
    assert tab.ask("document.documentElement.scrollWidth") <= width
    assert tab.ask(STICKING_OUT) == []
    shown = "narrow" if width < 500 else "wide"
    assert tab.ask(f"[...document.querySelectorAll('.{shown} svg')].every(e => e.getBoundingClientRect().height > 50)")


def test_the_record_can_be_saved(tab: browser.Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    tab.open(pages["plain"])
    saved = tab.download("a[download$=gz]", tmp_path)
    assert Record.model_validate(json.loads(gzip.decompress(saved.read_bytes()))) == record()
    assert tab.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(tab: browser.Browser, pages: dict[str, Path], scheme: str) -> None:
    tab.open(pages["plain"], scheme=scheme)
    assert tab.ask("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)"
    )
    assert tab.ask(CONTRAST) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_texts_of_a_chart_stay_inside_it_and_off_each_other(
    tab: browser.Browser, pages: dict[str, Path], width: int
) -> None:
    tab.open(pages["plain"], width=width)
    found = tab.ask(
        """
        [...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().height > 0).flatMap(s => {
          const box = s.getBoundingClientRect();
          const all = [...s.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
          const out = all.filter(([, b]) => b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 3
            || b.bottom > box.bottom + 3).map(([t]) => 'outside: ' + t);
          for (let i = 0; i < all.length; i++) for (let j = i + 1; j < all.length; j++) {
            const [a, p] = all[i], [b, q] = all[j];
            const w = Math.min(p.right, q.right) - Math.max(p.left, q.left);
            const h = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
            if (w > 1 && h > 4) out.push('overlap: ' + a + ' | ' + b);
          }
          return out;
        })
        """
    )
    assert found == []


def test_the_policy_stops_what_would_get_through(tab: browser.Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    text = (
        pages["plain"].read_text(encoding="utf-8").replace("</main>", f"{PROOF}<style>body{{color:red}}</style></main>")
    )
    broken = tmp_path / "broken.html"
    broken.write_text(text, encoding="utf-8")
    tab.open(broken)
    assert tab.ask("typeof window.ran") == "undefined"
    assert tab.ask("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
    # The blocked image is asked for by no request that leaves; the browser says that it refused.
    assert any("Content Security Policy" in complaint for complaint in tab.complaints())
