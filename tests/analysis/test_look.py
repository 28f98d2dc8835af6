import numpy as np
import pytest

import ddetr_np
from ddetr_np import InputError
from ddetr_np.analysis.look import (
    check_place,
    decoder_sampling,
    encoder_sampling,
    index_of,
    look,
    middle_token,
    pick_detection,
    pick_place,
    pick_query,
    token_at,
)
from ddetr_np.evaluate.postprocess import Best

H, W = 60, 90  # of the picture; the model sees it twice as large
SHAPES = ((15, 23), (8, 12), (4, 6), (2, 3))


@pytest.fixture(scope='module')
def picture():
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


@pytest.fixture(scope='module')
def model(tiny):
    model = ddetr_np.build_model(
        'refine', backbone='resnet18', names=('dog', 'cat', 'hen', 'cow'), seed=1,
        **tiny,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    for name, param in model.named_params():
        if 'attention_weights' in name:  # equal weights would show no mistake
            param.data[...] = rng.standard_normal(param.data.shape)
    return model


@pytest.fixture(scope='module')
def seen(model, picture):
    return look(model, picture, short=120, long=200)


def test_what_is_seen(seen, picture):
    np.testing.assert_array_equal(seen.picture, picture)
    assert seen.images.shape == (1, 120, 180, 3)
    assert seen.cache.shapes == SHAPES
    assert len(seen.best.scores) == 6 * 4
    assert (np.diff(seen.best.scores) <= 0).all()
    assert seen.best.scores.max() <= 1


@pytest.mark.parametrize('sampling', [encoder_sampling, decoder_sampling])
def test_recomputed_layers_are_the_same_bits(model, picture, seen, sampling):
    kept = look(model, picture, short=120, long=200, keep='all')
    for layer in range(2):
        again, first = sampling(seen, layer), sampling(kept, layer)
        for a, b in zip(again[:3], first[:3], strict=True):
            np.testing.assert_array_equal(a, b)
    assert again.shapes == first.shapes == SHAPES


def test_encoder_samples_around_its_own_places(seen, model):
    """By hand: a fresh layer's offsets are its bias, in pixels of each level."""
    S = sum(h * w for h, w in SHAPES)
    sampling = encoder_sampling(seen)
    assert sampling.loc.shape == (S, 2, 4, 2, 2)
    np.testing.assert_allclose(sampling.A.sum((2, 3)), 1, rtol=1e-5)
    assert np.ptp(sampling.A) > 0.1
    token = 15 * 23 + 3 * 12 + 5  # x 5, y 3 of level 1
    place = np.array([5.5 / 12, 3.5 / 8])
    np.testing.assert_allclose(sampling.p_hat[token], place, rtol=1e-6)
    layer = model.transformer.encoder.layers[-1]
    offset = layer.self_attn.sampling_offsets.bias.data.reshape(2, 4, 2, 2)
    sizes = np.array(SHAPES)[:, None, ::-1]
    np.testing.assert_allclose(sampling.loc[token], place + offset / sizes, rtol=1e-5)


def test_decoder_samples_around_the_box_of_the_layer_before(seen):
    first, second = decoder_sampling(seen, 0), decoder_sampling(seen, 1)
    assert first.p_hat.shape == (6, 2)
    np.testing.assert_array_equal(second.p_hat, seen.out.boxes[0, 0])
    assert second.loc.shape == (6, 2, 4, 2, 2)
    np.testing.assert_allclose(second.A.sum((2, 3)), 1, rtol=1e-5)


def test_layers_that_are_not_there(seen):
    with pytest.raises(InputError, match='no encoder layer 2; this model has 0 to 1'):
        encoder_sampling(seen, 2)
    with pytest.raises(InputError, match='no decoder layer -4; this model has 0 to 2'):
        decoder_sampling(seen, -4)


def test_indices():
    assert index_of(-1, 5, 'head') == 4
    assert index_of(np.int64(2), 5, 'head') == 2
    with pytest.raises(InputError, match='no head 1.5; this model has 0 to 4'):
        index_of(1.5, 5, 'head')
    with pytest.raises(InputError, match='has none'):
        index_of(0, 0, 'head')


@pytest.fixture
def three(seen):
    """A cat left and a dog right, in the picture's pixels; below, a poor dog."""
    boxes = np.array([[10, 10, 40, 30], [50, 10, 80, 30], [0, 40, 200, 70]], float)
    best = Best(
        np.array([0.9, 0.6, 0.1]), np.array([1, 0, 0]), boxes, np.array([4, 2, 4])
    )
    return seen._replace(best=best)


def test_detections(three):
    assert [pick_detection(three, i) for i in (0, 1)] == [0, 1]
    assert pick_detection(three, 2, threshold=0) == 2
    with pytest.raises(InputError, match=r'no detection 2; .* 0.5 or more are 0 to 1'):
        pick_detection(three, 2)
    for i in (-1, 1.0, '1'):
        with pytest.raises(InputError, match='no detection'):
            pick_detection(three, i)
    with pytest.raises(InputError, match='0.95 or more; the best is cat with 0.900'):
        pick_detection(three, 0, 0.95)


def test_queries(three):
    assert pick_query(three, 4) == 0
    assert pick_query(three, -4) == 1
    with pytest.raises(InputError, match='no query 6; this model has 0 to 5'):
        pick_query(three, 6)


@pytest.mark.parametrize(
    ('place', 'i'),
    [
        ((20, 20), 0),
        ((80, 30), 1),
        ((43, 5), 0),  # in none: 3 and 5 pixels from the cat, 7 and 5 from the dog
        ((48, 20), 1),
        ((5, 37), 2),
        ((0, 0), 0),
    ],
)
def test_places(three, place, i):
    assert pick_place(three, *place) == i


def test_the_best_of_boxes_that_hold_a_place(three):
    boxes = np.array([[0, 0, 90, 60], [10, 10, 20, 20], [0, 0, 5, 5]], float)
    nested = three._replace(best=three.best._replace(boxes=boxes))
    assert pick_place(nested, 12, 12) == 0


def test_tokens(seen):
    assert token_at(seen, 0, 0) == 0
    assert token_at(seen, W, H) == 15 * 23 - 1
    # x 46 / 90 of 23 tokens is 11.8, y 30 / 60 of 15 is 7.5
    assert token_at(seen, 46, 30) == 7 * 23 + 11
    assert token_at(seen, W, H, level=-1) == sum(h * w for h, w in SHAPES) - 1
    with pytest.raises(InputError, match='no level 4; this model has 0 to 3'):
        token_at(seen, 0, 0, level=4)


def test_a_token_is_the_nearest(seen):
    centres = encoder_sampling(seen).p_hat[: 15 * 23] * [W, H]
    for place in np.random.default_rng(0).uniform(0, (W, H), (50, 2)):
        apart = np.abs((centres - place) / [W / 23, H / 15]).max(1)
        assert token_at(seen, *place) == apart.argmin()


def test_the_middle_of_a_box(three):
    assert middle_token(three, 0) == token_at(three, 25, 20)
    assert middle_token(three, 2) == token_at(three, W, 55)  # from beyond the edge


@pytest.mark.parametrize('place', [(-1, 0), (0, 61), (91, 5), (float('nan'), 5)])
def test_places_outside(seen, place):
    for use in (pick_place, token_at):
        with pytest.raises(InputError, match='x from 0 to 90 and y from 0 to 60'):
            use(seen, *place)
    with pytest.raises(InputError, match='outside the picture'):
        check_place(seen.picture, *place)
