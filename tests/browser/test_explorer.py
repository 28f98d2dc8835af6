"""The explorer in a real browser: what it shows is what the pass had."""

import numpy as np
import pytest

import ddetr_np
from ddetr_np.analysis.gradient_norm import gradient_norms
from ddetr_np.analysis.look import decoder_sampling, encoder_sampling, look
from ddetr_np.data.scenes import draw_scene
from ddetr_np.views.explorer import pack, save_page

pytestmark = pytest.mark.browser


@pytest.fixture(scope='module')
def seen():
    scene = draw_scene(3, 192, 256)
    sizes = {'backbone': 'resnet18', 'width': 8, 'C': 32, 'M': 2, 'ffn': 32, 'Nq': 12}
    model = ddetr_np.build_model(
        'two_stage', encoder_layers=2, decoder_layers=3, num_classes=3,
        names=('cat', 'dog', 'cow'), short=192, long=256, **sizes,
    )
    rng = np.random.default_rng(3)
    for _, p in model.named_params():
        if p.learns:
            p.data += 0.05 * rng.standard_normal(p.data.shape)
    return look(model, scene.picture)


@pytest.fixture
def page(browser, seen, tmp_path):
    path = tmp_path / 'page.html'
    norms = gradient_norms(seen, 0, items=('x', 'c'))
    save_page(path, pack(seen, threshold=0, norms=[norms]))
    page = browser.new_page(viewport={'width': 1200, 'height': 900})
    page.problems = []
    page.on('console', lambda m: page.problems.append(m.text))
    page.on('pageerror', lambda error: page.problems.append(str(error)))
    page.on('request', lambda r: page.problems.append(r.url)
            if not r.url.startswith(('file:', 'data:', 'blob:')) else None)
    page.goto(path.as_uri())
    page.wait_for_selector('html[data-ready]')
    yield page
    assert page.problems == []
    page.close()


def circles(page):
    """The points on the page: (n, 2) pixels of the picture, ordered by (m, l, k)."""
    found = page.eval_on_selector_all(
        '#view .dot', 'all => all.map(c => [c.getAttribute("data-point"), '
        '+c.getAttribute("cx"), +c.getAttribute("cy")])'
    )
    return np.array([point[1:] for point in sorted(found)])


def need_points(page, sampling, row, digits):
    """Demand a query's points, rounded as the page's numbers are."""
    sizes = np.array([(W, H) for H, W in sampling.shapes])[:, None]
    offset = (sampling.loc - sampling.p_hat[:, None, None, None, :2]) * sizes
    longest = np.abs(offset).max((0, 1, 3, 4))[:, None, None]  # tokens, of each level
    half = (0.51 * longest / digits + 1e-3) * (256, 192) / sizes
    got = circles(page).reshape(sampling.loc.shape[1:])
    assert (np.abs(got - sampling.loc[row] * (256, 192)) <= half).all()


def hover(page, x, y):
    box = page.locator('#view').bounding_box()
    scale = min(box['width'] / 256, box['height'] / 192)
    left = box['x'] + (box['width'] - 256 * scale) / 2
    top = box['y'] + (box['height'] - 192 * scale) / 2
    page.mouse.move(left + x * scale, top + y * scale)


def test_hovering_shows_the_token_below(page, seen):
    sampling = encoder_sampling(seen)
    H, W = sampling.shapes[0]
    for x, y in ((100.0, 60.0), (250.0, 188.0)):
        hover(page, x, y)
        row = int(y / 192 * H) * W + int(x / 256 * W)
        need_points(page, sampling, row, 127)
        assert 'Encoder layer 2 of 2' in page.inner_text('#says')


def test_a_pinned_token_stays(page, seen):
    hover(page, 100, 60)
    page.mouse.down()
    page.mouse.up()
    before = circles(page)
    hover(page, 20, 150)
    np.testing.assert_array_equal(before, circles(page))
    page.keyboard.press('Escape')
    hover(page, 30, 150)
    assert (circles(page) != before).any()


def test_a_detection_shows_its_query_layer_by_layer(page, seen):
    page.click('#found li:nth-child(2) button')
    query = int(seen.best.queries[1])
    need_points(page, decoder_sampling(seen, 2), query, 32767)
    page.select_option('#layer', '0')
    need_points(page, decoder_sampling(seen, 0), query, 32767)
    assert 'Decoder layer 1 of 3' in page.inner_text('#says')
    name = seen.model.config.names[seen.best.labels[1]]
    assert page.text_content('#view .label').startswith(name)


def test_heads_and_levels(page, seen):
    page.click('#found button >> nth=0')
    config = seen.model.config
    assert len(circles(page)) == config.M * config.L * config.K
    page.select_option('#head', '1')
    assert len(circles(page)) == config.L * config.K
    page.select_option('#level', '2')
    assert len(circles(page)) == config.K


def test_maps_of_figure_5(page, seen):
    page.click('#found button >> nth=0')
    values = page.eval_on_selector_all('#map option', 'all => all.map(o => o.value)')
    assert values == ['', 'x', 'c']
    page.select_option('#map', 'c')
    shown = page.get_attribute('#view image >> nth=1', 'href')
    assert shown.startswith('data:image/png')
    other = next(
        i for i, q in enumerate(seen.best.queries) if q != seen.best.queries[0]
    )
    page.click(f'#found button >> nth={other}')  # a detection without maps
    values = page.eval_on_selector_all('#map option', 'all => all.map(o => o.value)')
    assert values == ['']


def test_dragging_the_reference_point_takes_the_points_along(page):
    page.click('#found button >> nth=0')
    before = circles(page)
    box = page.locator('#view .grip').bounding_box()
    view = page.locator('#view').bounding_box()
    scale = min(view['width'] / 256, view['height'] / 192)
    x, y = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
    shares = page.inner_text('#point')
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 10 * scale, y + 6 * scale, steps=4)
    page.mouse.up()
    moved = circles(page) - before
    np.testing.assert_allclose(moved, np.broadcast_to([10, 6], moved.shape), atol=0.5)
    assert page.inner_text('#point') != shares  # the bilinear weights follow
    page.click('#back')
    np.testing.assert_allclose(circles(page), before, atol=1e-6)


def test_by_keyboard(page):
    page.focus('#view')
    says = page.inner_text('#says')
    page.keyboard.press('ArrowRight')
    assert page.inner_text('#says') != says
    page.keyboard.press('[')
    assert 'layer 1 of 2' in page.inner_text('#says')
    page.check('input[value=decoder]')
    page.focus('#view')
    first = page.inner_text('#says')
    page.keyboard.press('ArrowDown')
    assert page.inner_text('#says') != first


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_fits_a_phone(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({'width': 360, 'height': 720})
    wide = page.evaluate('document.documentElement.scrollWidth')
    assert wide <= 360
    ground = page.evaluate('getComputedStyle(document.body).backgroundColor')
    page.click('#theme')
    assert page.evaluate('getComputedStyle(document.body).backgroundColor') != ground
