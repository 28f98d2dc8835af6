"""The site builds without a warning, and reads well in a real browser."""

import functools
import http.server
import re
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest

ROOT = Path(__file__).parents[2]
SIZES = {'desktop': (1280, 900), 'phone': (390, 844)}
PAGES = [
    'index.html', 'install.html', 'howto/figures.html', 'equation-map.html',
    'commands.html', 'benchmarks.html', 'model-cards.html', 'api/index.html',
    'walkthroughs/03_three_ways.html', 'walkthroughs/10_your_own_pictures.html',
    'api/generated/ddetr_np.ops.ms_deform_attn.html',
    'api/generated/ddetr_np.config.html',
]
LINK = re.compile(r'(?:href|src)="([^"]*)"')
ID = re.compile(r'\bid="([^"]+)"')


@pytest.mark.slow
def test_internal_links_resolve(site):
    texts = {
        path.relative_to(site).as_posix(): path.read_text(encoding='utf-8')
        for path in site.rglob('*.html')
        if '_static' not in path.parts  # the theme's templates
    }
    ids = {page: {unquote(i) for i in ID.findall(text)} for page, text in texts.items()}
    broken = []
    for page, text in texts.items():
        for link in set(LINK.findall(text)):
            if re.match(r'[a-z]+:|//', link):
                continue
            target, fragment = urldefrag(urljoin(f'/{page}', link.split('?')[0]))
            target = unquote(target).lstrip('/') or page
            fragment = unquote(urldefrag(link)[1])
            if not (site / target).is_file():
                broken.append(f'{page}: {link}')
            elif fragment and target in ids and fragment not in ids[target]:
                broken.append(f'{page}: {link}')
    assert not broken, '\n'.join(sorted(broken)[:50])
    assert len(texts) > 100


@pytest.mark.slow
def test_nothing_comes_from_elsewhere(site):
    loads = re.compile(r'<(script|img|iframe)[^>]*src="(https?:)?//|@import|url\(http')
    for path in site.rglob('*.html'):
        text = path.read_text(encoding='utf-8')
        assert not loads.search(re.sub(r'<pre>.*?</pre>', '', text, flags=re.S)), path
        assert not re.search(r'<link[^>]*rel="stylesheet"[^>]*href="http', text), path


@pytest.mark.slow
def test_every_entry_of_the_map_links_to_code(site):
    text = (site / 'equation-map.html').read_text(encoding='utf-8')
    codes = re.findall(r'<code class="xref py py-obj', text)
    linked = re.findall(r'<a class="reference[^>]*><code class="xref py py-obj', text)
    assert len(codes) == len(linked) > 100


@pytest.mark.slow
def test_the_reference_holds_every_module(site):
    package = ROOT / 'ddetr_np'
    for path in package.rglob('*.py'):
        parts = path.relative_to(ROOT).with_suffix('').parts
        parts = parts[:-1] if parts[-1] == '__init__' else parts
        hidden = any(part.startswith('_') for part in parts)
        if hidden or parts[1:2] in (('commands',), ('cli',)):
            continue
        assert (site / 'api' / 'generated' / f'{".".join(parts)}.html').is_file(), parts


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def address(site):
    handler = functools.partial(Handler, directory=str(site))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{server.server_address[1]}/'
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=SIZES)
def size(request):
    return dict(zip(('width', 'height'), SIZES[request.param]))


@pytest.fixture(params=['light', 'dark'])
def page(request, browser, address, size):
    page = browser.new_page(viewport=size, color_scheme=request.param)
    page.problems = []
    page.on('console', lambda m: page.problems.append(m.text)
            if m.type in ('error', 'warning') else None)
    page.on('pageerror', lambda error: page.problems.append(str(error)))
    page.on('request', lambda r: page.problems.append(r.url)
            if not r.url.startswith((address, 'data:')) else None)
    page.scheme = request.param
    yield page
    assert page.problems == []
    page.close()


WIDE = """() => {
    const held = '.equation, pre, .pst-scrollable-table-container, dialog, svg';
    return [...document.querySelectorAll('main article *')]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
        .filter(e => !e.closest(held)).map(e => e.outerHTML.slice(0, 120));
}"""
BRIGHTNESS = """() => getComputedStyle(document.body).backgroundColor
    .match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"""


@pytest.mark.browser
def test_pages(page, address):
    for name in PAGES:
        page.goto(address + name)
        page.wait_for_load_state('networkidle')
        assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), name
        assert page.evaluate(WIDE) == [], name
        bright = page.evaluate(BRIGHTNESS)
        assert bright > 600 if page.scheme == 'light' else bright < 150
        images = '[...document.images].every(i => i.complete && i.naturalWidth)'
        assert page.evaluate(images), name


@pytest.mark.browser
def test_equations_are_laid_out(page, address):
    page.goto(address + 'equation-map.html')
    sizes = page.eval_on_selector_all(
        '.equation math', 'all => all.map(e => e.getBoundingClientRect().height)'
    )
    assert len(sizes) > 20
    assert min(sizes) > 10


@pytest.mark.browser
def test_search_finds_a_function(page, address):
    page.goto(address + 'search.html?q=sampling_locations')
    page.wait_for_selector('#search-results li a')
    hrefs = page.eval_on_selector_all(
        '#search-results li a', 'all => all.map(a => a.href)'
    )
    assert any('ddetr_np.ops.ms_deform_attn' in href for href in hrefs)
    page.wait_for_load_state('networkidle')
