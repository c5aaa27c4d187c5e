"""The report as a reader meets it: pointer, keys, sound, phone, dark."""

import json

import numpy as np
import pytest
import soundfile

from ssmast.report import main

from .browser import Browser
from .test_report import clusters_result, result, write_run

EVIL = "<img src=x onerror=alert(1)>'\"&.wav"
CENTRE = """(i => {
  const root = document.querySelector('.scatter'), plot = root.querySelector('.plot');
  const view = Bokeh.index.roots[0], frame = view.frame;
  const data = view.model.document.get_model_by_name('clips').data;
  const box = view.canvas_view.el.getBoundingClientRect();
  return [box.x + frame.x_scale.compute(data.x[i]), box.y + frame.y_scale.compute(data.y[i])];
})"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as one:
        yield one


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with a scatter of six clips: five with sound inside, the last one linked."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "set").mkdir()
    names = [f"{i} clip.wav" for i in range(4)] + [EVIL, "last #5?.wav"]
    time = np.arange(16000) / 16000
    for i, name in enumerate(names):
        soundfile.write(folder / "set" / name, 0.3 * np.sin(2000 * (i + 1) * time), 16000)
    lines = "".join('"' + name.replace('"', '""') + '",a\n' for name in names)
    (folder / "set" / "metadata.csv").write_text("path,label\n" + lines)
    run = write_run(folder / "run")
    for name, content in (
        ("probe", result(task="esc50", num_classes=50)),
        ("clusters", clusters_result(folder / "set", names)),
    ):
        (run / name).mkdir()
        (run / name / "a.json").write_text(json.dumps(content))
    assert main([str(run), f"out={folder / 'all.html'}"]) == 0
    assert main([str(run), f"out={folder / 'linked.html'}", "audio_mb=0"]) == 0
    return folder / "all.html"


def open_page(browser, file, **size):
    browser.problems.clear()
    browser.requests.clear()
    browser.size(**{"width": 1100, "height": 900, **size})
    browser.open(file)
    browser.value("document.querySelector('.plot').scrollIntoView({block: 'center'})")


def words(browser):
    """What the page shows, shadow roots (where Bokeh's tooltip is) included."""
    return browser.value(
        "(function walk(node) { let text = node.nodeType === 3 ? node.data : '';"
        " if (node.nodeName === 'SCRIPT' || node.nodeName === 'STYLE') return '';"
        " for (const child of [...(node.shadowRoot?.childNodes ?? []), ...node.childNodes])"
        " text += walk(child) + ' '; return text; })(document.body).replace(/\\s+/g, ' ')"
    )


def test_hovering_names_a_clip_and_clicking_plays_it(browser, page):
    open_page(browser, page)
    x, y = browser.value(f"{CENTRE}(4)")
    before = words(browser).count(EVIL)
    browser.move(x - 3, y)
    browser.move(x, y)
    browser.wait("document.querySelector('.plot') && true")
    for _ in range(100):
        if words(browser).count(EVIL) > before:
            break
        browser.value("new Promise(done => setTimeout(done, 50))")
    assert words(browser).count(EVIL) > before  # as text: nothing of it became an element
    browser.click(x, y)
    browser.wait("document.querySelector('audio').currentTime > 0")
    assert browser.value("document.querySelector('audio').dataset.clip") == EVIL
    assert browser.value("document.querySelector('.name').textContent") == f"{EVIL} (b & co)"
    assert browser.value("document.querySelector('.clips').value") == "4"
    near = "[...document.querySelectorAll('.near button')].map(one => one.textContent)"
    assert browser.value(near)[0] == "0 clip.wav (a<b>)"
    browser.value("document.querySelector('.near button').click()")
    browser.wait("document.querySelector('audio').dataset.clip === '0 clip.wav'")
    browser.wait("document.querySelector('audio').currentTime > 0")
    assert browser.value("document.querySelectorAll('img[src=x]').length") == 0
    assert browser.problems == []
    assert all(url.startswith(("file:", "data:")) for url in browser.requests)


def test_the_tools_have_names_and_the_tooltip_the_colours_of_the_page(browser, page):
    open_page(browser, page, dark=True)
    x, y = browser.value(f"{CENTRE}(0)")
    browser.move(x - 3, y)
    browser.move(x, y)
    browser.wait("document.querySelector('.bk-Tooltip') !== null")
    for what, name in (("backgroundColor", "--panel"), ("color", "--text")):
        shown = f"getComputedStyle(document.querySelector('.bk-Tooltip')).{what}"
        wanted = (
            "(one => { one.style.color = 'var(NAME)'; document.body.append(one);"
            " const found = getComputedStyle(one).color; one.remove(); return found; })"
            "(document.createElement('i'))"
        )
        assert browser.value(shown) == browser.value(wanted.replace("NAME", name))
    browser.value("document.querySelector('.plot').focus()")
    stops = browser.value(
        "(function walk(node) { return [...(node.shadowRoot?.children ?? []), ...node.children]"
        ".flatMap(one => [...(one.tabIndex === 0 ? [[one.getAttribute('role'),"
        " one.getAttribute('aria-label')]] : []), ...walk(one)]); })"
        "(document.querySelector('.plot'))"
    )
    assert stops == [["button", name] for name in ("Pan", "Box Zoom", "Wheel Zoom", "Reset")]


def test_keys_do_what_the_pointer_does(browser, page):
    open_page(browser, page)
    browser.value("document.querySelector('.plot').focus()")
    browser.key("ArrowRight", code=39)  # the first clip, then the one right of it
    assert browser.value("document.querySelector('.clips').value") == "0"
    browser.key("ArrowRight", code=39)
    assert browser.value("document.querySelector('.clips').value") == "1"
    browser.key("ArrowUp", code=38)
    assert browser.value("document.querySelector('.clips').value") == "4"
    browser.key("Enter", code=13, text="\r")
    browser.wait("document.querySelector('audio').currentTime > 0")
    # Tab leads from the scatter over its tools to the search and the list, which do the same.
    visited = []
    while "find" not in visited:
        assert len(visited) < 15
        browser.key("Tab", code=9)
        visited.append(browser.value("document.activeElement.className"))
    browser.key("Tab", code=9)
    assert browser.value("document.activeElement.className") == "clips"
    browser.key("Home", code=36)
    browser.wait("document.querySelector('.name').textContent.startsWith('0 clip.wav')")
    browser.key("Enter", code=13, text="\r")
    browser.wait("document.querySelector('audio').dataset.clip === '0 clip.wav'")
    assert browser.problems == []


def test_classes_can_be_hidden_and_the_embedding_changed(browser, page):
    open_page(browser, page)
    listed = "document.querySelectorAll('.clips option').length"
    assert browser.value(listed) == 6
    browser.value("document.querySelector('.legend input').click()")
    assert browser.value(listed) == 3
    browser.value(
        "(find => { find.value = 'LAST'; find.dispatchEvent(new Event('input')); })"
        "(document.querySelector('.find'))"
    )
    assert browser.value(listed) == 1
    browser.value(
        "(one => { one.value = 'log_mel'; one.dispatchEvent(new Event('change')); })"
        "(document.querySelector('.column'))"
    )
    assert browser.value("Bokeh.index.roots[0].model.x_range.start") == pytest.approx(-11)
    x = "Bokeh.index.roots[0].model.document.get_model_by_name('clips').data.x"
    assert browser.value(f"[...{x}]") == [-10, 0, 10, -10, 0, 10]
    assert browser.problems == []


def test_linked_clips_play_too(browser, page):
    open_page(browser, page.with_name("linked.html"))
    for clip in (4, 5):
        x, y = browser.value(f"{CENTRE}({clip})")
        browser.click(x, y)
        browser.wait("document.querySelector('audio').currentTime > 0")
        assert browser.value("document.querySelector('audio').src").startswith("file:")
    assert browser.problems == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1100])
def test_text_is_legible_on_every_screen(browser, page, dark, width):
    open_page(browser, page, width=width, dark=dark, mobile=width < 500)
    assert browser.value("document.documentElement.scrollWidth") <= width
    contrast = browser.value(
        """(() => {
        const ctx = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        const light = (colours) => {
          ctx.clearRect(0, 0, 1, 1);
          for (const colour of colours) { ctx.fillStyle = colour; ctx.fillRect(0, 0, 1, 1); }
          const [r, g, b] = [...ctx.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => {
            v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        let worst = [99, ''];
        for (const node of document.querySelectorAll('body *')) {
          const has = [...node.childNodes].some(one => one.nodeType === 3 && one.data.trim());
          if (!has || ['SCRIPT', 'STYLE', 'OPTION'].includes(node.nodeName)) continue;
          if (node.disabled || !node.getClientRects().length) continue;
          const back = [];
          for (let up = node; up; up = up.parentElement)
            back.unshift(getComputedStyle(up).backgroundColor);
          const ground = light(back), ink = light([...back, getComputedStyle(node).color]);
          const ratio = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
          const small = parseFloat(getComputedStyle(node).fontSize) < 11 && !node.closest('svg');
          if (small) return [0, 'small: ' + node.outerHTML.slice(0, 200)];
          if (ratio < worst[0] && !node.ariaHidden) worst = [ratio, node.outerHTML.slice(0, 200)];
        }
        return worst; })()"""
    )
    assert contrast[0] >= 4.5, contrast
    assert browser.value("document.querySelector('.plot').getBoundingClientRect().width") <= width
    assert browser.problems == []


def test_scripts_from_elsewhere_do_not_run(browser, page, tmp_path):
    text = page.read_text()
    bad = tmp_path / "bad.html"
    bad.write_text(text.replace("<h1>", "<script>document.title = 'owned'</script><h1>", 1))
    browser.size(1100, 900)
    browser.open(bad)
    assert browser.value("document.title") != "owned"
    assert any("Content Security Policy" in problem for problem in browser.problems)
