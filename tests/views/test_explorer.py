import base64
import json
import re
import zlib

import numpy as np
import pytest

import ddetr_np
from ddetr_np.analysis.look import Sampling, decoder_sampling, encoder_sampling, look
from ddetr_np.views import explorer
from ddetr_np.views.explorer import packing


@pytest.fixture(scope='module')
def seen():
    sizes = {'backbone': 'resnet18', 'width': 8, 'C': 32, 'M': 2, 'ffn': 32, 'Nq': 12}
    model = ddetr_np.build_model(
        'two_stage', encoder_layers=2, decoder_layers=2, num_classes=3,
        names=('a', 'b', '</script>'), short=96, long=160, **sizes,
    )
    for _, p in model.named_params():  # offsets of all kinds, not only the initial
        if p.learns:
            p.data += 0.05 * np.random.default_rng(3).standard_normal(p.data.shape)
    picture = np.random.default_rng(0).integers(0, 255, (80, 130, 3), np.uint8)
    return look(model, picture)


def decode(packed):
    raw = zlib.decompress(base64.b64decode(packed['data']))
    return np.frombuffer(raw, packed['type']).reshape(packed['shape'])


def points(layer, reference, shapes):
    """The points that the page draws, as fractions of the picture."""
    sizes = np.array([(W, H) for H, W in shapes])
    step = np.array(layer['step'])[:, None, None]
    offset = decode(layer['offset']) * step
    return reference[:, None, None, None, :2] + offset / sizes[:, None]


def test_points_and_weights_are_those_of_the_pass(seen):
    packed = explorer.pack(seen, threshold=0)
    for part, sampling_of in (('encoder', encoder_sampling),
                              ('decoder', decoder_sampling)):
        for i, layer in enumerate(packed[part]):
            sampling = sampling_of(seen, i)
            rows = decode(layer['tokens']) if part == 'encoder' else slice(None)
            got = points(layer, sampling.p_hat[rows], packed['shapes'])
            sizes = np.array([(W, H) for H, W in packed['shapes']])
            off = np.abs(got - sampling.loc[rows]) * sizes[:, None]
            assert (off <= 0.51 * np.array(layer['step'])[:, None, None]).all()
            A = decode(layer['A']) / 255 * layer['largest']
            assert np.abs(A - sampling.A[rows]).max() <= layer['largest'] / 509
    assert len(decode(packed['encoder'][-1]['tokens'])) == len(sampling_of_all(seen))
    boxes = decode(packed['decoder'][0]['boxes'])
    np.testing.assert_allclose(boxes, seen.out.boxes[0][0], atol=1e-6)


def sampling_of_all(seen):
    return encoder_sampling(seen).A


def test_detections_are_the_best(seen):
    packed = explorer.pack(seen, threshold=0)
    first = packed['detections'][0]
    assert first['score'] == pytest.approx(seen.best.scores[0], abs=1e-4)
    assert first['query'] == seen.best.queries[0]
    with pytest.raises(ddetr_np.InputError, match='the best has'):
        explorer.pack(seen, threshold=1)


@pytest.mark.parametrize('most', [4, 9, 50, 10_000])
def test_a_coarser_grid(most):
    shapes = ((20, 31), (10, 16), (5, 8), (1, 1))
    tokens = packing.some_tokens(shapes, most)
    assert len(tokens) <= max(most, 4)
    assert len(set(tokens.tolist())) == len(tokens)
    starts = np.cumsum([0, *(H * W for H, W in shapes)])
    for first, last in zip(starts, starts[1:]):  # something of every level
        assert ((tokens >= first) & (tokens < last)).any()
    if most == 10_000:
        np.testing.assert_array_equal(tokens, np.arange(starts[-1]))


def test_the_page_needs_nothing_from_elsewhere(seen):
    page = explorer.make_page(explorer.pack(seen, threshold=0))
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert '@import' not in page
    # a class may be called anything
    text = page.split('id="data">')[1].split('</script>')[0]
    names = {d['name'] for d in json.loads(text)['detections']}
    assert '</script>' in names


def test_a_full_picture_stays_small(rng_sampling):
    """800 × 1333: all tokens of the last layer, as little alike as they can be."""
    shapes, sampling = rng_sampling
    S = len(sampling.A)
    tokens = packing.some_tokens(shapes, packing.FINE)
    assert len(tokens) == S == 22_223
    layer = packing._points(sampling, tokens, np.int8)
    size = len(layer['offset']['data']) + len(layer['A']['data'])
    others = 5 * size * packing.COARSE / S + 6 * 300 * 8 * 16 * 5 * 4 / 3
    assert size + others + 1e6 < 15e6


@pytest.fixture
def rng_sampling():
    rng = np.random.default_rng(0)
    shapes = ((100, 167), (50, 84), (25, 42), (13, 21))
    S = sum(H * W for H, W in shapes)
    p_hat = rng.random((S, 2), np.float32)
    loc = p_hat[:, None, None, None] + rng.random((S, 8, 4, 4, 2), np.float32)
    A = rng.random((S, 8, 4, 4), np.float32)
    return shapes, Sampling(p_hat, loc, A, shapes)
