"""The detector as a whole: structures, padding, batches, what it refuses."""

import numpy as np
import pytest

import ddetr_np
from ddetr_np.nn.ddetr import DeformableDETR, Output
from ddetr_np.nn.init import offset_bias
from ddetr_np.testing_model import randomise


def build(tiny, variant, dtype='float64', **fields):
    fields = {**tiny, 'dropout': 0.0, **fields}
    return randomise(ddetr_np.build_model(variant, dtype=dtype, **fields))


def pictures(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((h, w, 3)) for h, w in sizes]


@pytest.mark.parametrize('variant', ddetr_np.config.VARIANTS)
@pytest.mark.parametrize(
    'fields',
    [
        {},
        {'backbone': 'resnet101', 'width': 2},
        {'C': 24, 'M': 3, 'K': 1},
        {'C': 20, 'M': 5, 'initial_wh': 0.3},
        {'decoder_layers': 1, 'encoder_layers': 0},
        {'refine': False},
        {'refine': True, 'frozen_norm': False, 'freeze_at': 5},
        {'num_classes': 1, 'Nq': 1},
        {'proposal_iou': 0.5},
    ],
    ids=str,
)
def test_any_field_may_change(tiny, variant, fields):
    model = build(tiny, variant, **fields)
    images, mask = ddetr_np.pad_batch(pictures((40, 60), (33, 64)))
    out, _ = model.forward(images, mask)
    c = model.config
    assert out.logits.shape == (c.decoder_layers, 2, c.Nq, c.num_classes)
    assert out.boxes.shape == (c.decoder_layers, 2, c.Nq, 4)
    assert np.isfinite(out.logits).all()
    assert ((out.boxes >= 0) & (out.boxes <= 1)).all()
    assert (out.proposal_boxes is not None) == c.two_stage


@pytest.mark.parametrize('L', [1, 2, 3, 4, 6])
def test_levels_are_the_last_stages_then_strides_of_two(tiny, L):
    model = build(tiny, 'multi_scale', L=L)
    _, cache = model.forward(*ddetr_np.pad_batch(pictures((128, 200))))
    stages = [(16, 25), (8, 13), (4, 7)][-min(L, 3) :]
    while len(stages) < L:
        stages.append(tuple((s - 1) // 2 + 1 for s in stages[-1]))
    assert cache.shapes == tuple(stages)


def test_dc5_doubles_the_resolution(tiny):
    single = build(tiny, 'single_scale')
    dc5 = build(tiny, 'single_scale_dc5')
    images, mask = ddetr_np.pad_batch(pictures((96, 128)))
    assert single.forward(images, mask)[1].shapes == ((3, 4),)
    assert dc5.forward(images, mask)[1].shapes == ((6, 8),)
    assert single.state_dict().keys() == dc5.state_dict().keys()


def test_more_queries_than_tokens_takes_all_tokens(tiny):
    model = build(tiny, 'two_stage', L=2, Nq=50)
    images, mask = ddetr_np.pad_batch(pictures((64, 64)))
    out, cache = model.forward(images, mask)
    S = sum(h * w for h, w in cache.shapes)
    assert S < 50
    assert out.logits.shape[2] == S
    assert len(ddetr_np.detect(model, np.zeros((64, 64, 3), 'uint8'), 0, top=9)) == 9


@pytest.mark.parametrize('variant', ['multi_scale', 'refine', 'two_stage'])
@pytest.mark.parametrize('filling', ['noise', 'nan'])
def test_padded_tokens_change_no_valid_output(tiny, variant, filling, monkeypatch):
    """Whatever stands in padded tokens when the encoder begins."""
    model = build(tiny, variant)
    images, mask = ddetr_np.pad_batch(pictures((96, 128), (64, 70)))
    expected, cache = model.forward(images, mask)
    assert cache.padding.any()
    tokens = DeformableDETR._tokens

    def filled(self, maps, masks):
        x, pos, padding = tokens(self, maps, masks)
        noise = 100 * np.random.default_rng(1).standard_normal(x.shape)
        x[padding] = np.nan if filling == 'nan' else noise[padding]
        return x, pos, padding

    monkeypatch.setattr(DeformableDETR, '_tokens', filled)
    out, _ = model.forward(images, mask)
    for a, b in zip(out, expected):
        if a is not None:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('variant', ['single_scale', 'multi_scale', 'two_stage'])
def test_a_picture_alone_and_among_equals(tiny, variant):
    model = build(tiny, variant)
    (picture,) = pictures((64, 90))
    one, _ = model.forward(*ddetr_np.pad_batch([picture]))
    three, _ = model.forward(*ddetr_np.pad_batch([picture] * 3))
    for a, b in zip(one, three):
        if a is not None:
            for i in range(3):
                axis = 1 if a.ndim == 4 else 0
                np.testing.assert_allclose(b.take([i], axis), a, rtol=1e-10, atol=1e-12)


def test_boxes_are_fractions_of_the_unpadded_picture(tiny):
    """Reference points spread over the valid part only."""
    model = build(tiny, 'multi_scale')
    _, cache = model.forward(*ddetr_np.pad_batch(pictures((96, 128), (48, 64))))
    loc = cache.encoder[0].self_attn.locations[0]  # p_hat (N, S, L, 2)
    valid = ~cache.padding[1]
    np.testing.assert_allclose(cache.ratios[1], 0.5, atol=0.26)
    assert loc[1][valid].max() <= cache.ratios[1].max()


def test_without_a_mask_nothing_is_padding(tiny):
    model = build(tiny, 'multi_scale')
    images, mask = ddetr_np.pad_batch(pictures((64, 64), (64, 64)))
    a, cache = model.forward(images)
    b, _ = model.forward(images, mask)
    assert cache.padding is None
    np.testing.assert_array_equal(a.logits, b.logits)


def test_single_precision_stays_single(tiny):
    for variant in ddetr_np.config.VARIANTS:
        model = build(tiny, variant, 'float32')
        images, mask = ddetr_np.pad_batch(pictures((48, 64), (40, 50)))
        out, cache = model.forward(images, mask)
        dout = type(out)(*out)
        assert {a.dtype for a in out if a is not None} == {np.dtype('float32')}
        dimages = model.backward(dout, cache, images=True)
        assert dimages.dtype == np.float32
        assert {p.grad.dtype for p in model.params()} == {np.dtype('float32')}


def test_arguments_are_left_alone(tiny):
    model = build(tiny, 'two_stage')
    images, mask = ddetr_np.pad_batch(pictures((48, 64), (40, 50)))
    images.flags.writeable = mask.flags.writeable = False
    for p in model.params():
        p.data.flags.writeable = False
    out, cache = model.forward(images, mask)
    for a in out:
        a.flags.writeable = False
    model.backward(type(out)(*out), cache, images=True)


def test_dropout_is_a_function_of_seed_and_step(tiny):
    model = build(tiny, 'multi_scale', dropout=0.3)
    images, mask = ddetr_np.pad_batch(pictures((48, 64)))

    def logits(**options):
        return model.forward(images, mask, **options)[0].logits

    a = logits(train=True, step=1)
    np.testing.assert_array_equal(a, logits(train=True, step=1))
    assert (a != logits(train=True, step=2)).any()
    assert (a != logits()).any()
    streams = [d.stream for d in model.modules(ddetr_np.nn.layers.Dropout)]
    assert len(set(streams)) == len(streams) == 3 * 2 + 5 * 3


@pytest.mark.parametrize(
    ('images', 'mask', 'says'),
    [
        (np.zeros((1, 3, 32, 32)), None, r'\(N, H, W, 3\)'),
        (np.zeros((32, 32, 3)), None, 'pad_batch'),
        (np.zeros((1, 32, 32, 3), 'uint8'), None, 'normalise'),
        (np.zeros((0, 32, 32, 3)), None, 'expected'),
        (np.zeros((1, 32, 32, 3)), np.zeros((1, 32, 31), bool), 'mask'),
        (np.zeros((1, 32, 32, 3)), np.zeros((1, 32, 32)), 'bool'),
        (np.zeros((1, 32, 32, 3)), np.ones((1, 32, 32), bool), 'first pixel'),
    ],
)
def test_refuses_what_is_no_batch(tiny, images, mask, says):
    with pytest.raises(ddetr_np.InputError, match=says):
        build(tiny, 'multi_scale').forward(images, mask)


def test_refuses_an_unknown_keep_and_dtype(tiny):
    model = build(tiny, 'multi_scale')
    with pytest.raises(ddetr_np.InputError, match='all, inputs, none'):
        model.forward(np.zeros((1, 32, 32, 3)), keep='some')
    with pytest.raises(ddetr_np.InputError, match='float32'):
        ddetr_np.build_model('refine', dtype='float16')
    with pytest.raises(ddetr_np.InputError, match='seed'):
        ddetr_np.build_model('refine', seed=-1)


@pytest.mark.parametrize('step', [-1, 1 << 48, 1.5, '1', None])
def test_refuses_an_impossible_step(tiny, step):
    model = ddetr_np.build_model('multi_scale', **tiny)
    with pytest.raises(ddetr_np.InputError, match='step is'):
        model.forward(np.zeros((1, 32, 32, 3), 'float32'), train=True, step=step)


def test_steps_of_numpy_differ(tiny):
    model = ddetr_np.build_model('multi_scale', **tiny, dropout=0.5)
    images = np.ones((1, 32, 32, 3), 'float32')
    steps = np.uint8(5), np.uint8(200), 200
    a, b, c = (model.forward(images, train=True, step=s)[0].logits for s in steps)
    assert not np.array_equal(a, b)
    assert np.array_equal(b, c)


@pytest.mark.parametrize('variant', ['multi_scale', 'two_stage'])
@pytest.mark.parametrize('layers', [0, 1])
@pytest.mark.parametrize('none', [None, [None] * 3])
def test_no_gradient_adds_nothing(tiny, variant, layers, none):
    model = ddetr_np.build_model(variant, **{**tiny, 'encoder_layers': layers})
    images = np.ones((1, 40, 48, 3), 'float32')
    _, cache = model.forward(images)
    assert model.backward(Output(none, none), cache) is None
    dimages = model.backward(Output(none, none), cache, images=True)
    assert dimages.shape == images.shape
    assert dimages.dtype == np.float32
    assert not dimages.any()
    assert not any(p.grad.any() for p in model.params())


def test_refuses_gradients_of_proposals_that_it_did_not_make(tiny):
    model = ddetr_np.build_model('multi_scale', **tiny)
    out, cache = model.forward(np.ones((1, 40, 48, 3), 'float32'))
    dout = Output(out.logits, None, out.logits[0], None)
    with pytest.raises(ddetr_np.InputError, match='two-stage'):
        model.backward(dout, cache)


def test_offset_bias_in_both_orders():
    """A.4 lists eight directions; the released code goes round the circle."""
    paper = offset_bias(8, 1, 2, 'paper')
    k = np.array([1, 2])
    listed = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    for m, (x, y) in enumerate(listed):
        np.testing.assert_array_equal(paper[m, 0], np.stack([k * x, k * y], -1))
    released = offset_bias(8, 3, 2)
    around = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for m, (x, y) in enumerate(around):
        for l in range(3):
            expected = np.stack([k * x, k * y], -1)
            np.testing.assert_allclose(released[m, l], expected, atol=1e-12)
    with pytest.raises(ValueError, match='8 heads, M is 6'):
        offset_bias(6, 1, 2, 'paper')


def test_initial_values_are_the_published_ones():
    model = ddetr_np.build_model('refine', C=32, M=8, ffn=16, width=4, seed=3)
    state = model.state_dict()
    prior = -np.log(0.99 / 0.01)
    np.testing.assert_allclose(state['class_embed.0.bias'], prior, rtol=1e-6)
    for d in range(6):
        wh = -2 if d == 0 else 0
        last = f'bbox_embed.{d}.layers.2'
        np.testing.assert_allclose(state[f'{last}.bias'], [0, 0, wh, wh], atol=1e-6)
        assert not state[f'{last}.weight'].any()
    attention = 'transformer.decoder.layers.0.cross_attn'
    for name in ('sampling_offsets.weight', 'attention_weights.weight'):
        assert not state[f'{attention}.{name}'].any()
    two_stage = ddetr_np.build_model('two_stage', C=32, M=8, ffn=16, width=4)
    for d in range(7):
        assert not two_stage.state_dict()[f'bbox_embed.{d}.layers.2.bias'].any()
    again = ddetr_np.build_model('refine', C=32, M=8, ffn=16, width=4, seed=3)
    for name, array in again.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


def test_initial_attention_is_uniform_inside_the_box():
    """A.4: A = 1 / LK, and with boxes all points start within them."""
    model = ddetr_np.build_model(
        'two_stage', C=32, M=8, ffn=16, width=4, dtype='float64', Nq=5
    )
    images, mask = ddetr_np.pad_batch(pictures((128, 128)))
    _, cache = model.forward(images, mask)
    for layer in cache.decoder.layers:
        core = layer.cross_attn.core
        np.testing.assert_allclose(core.A, 1 / 16)
        p_hat = layer.cross_attn.locations[0][:, :, None, :, None]
        off = np.abs(core.loc - p_hat[..., :2])
        assert (off <= p_hat[..., 2:] / 2 + 1e-12).all()


def test_trainable_parameters_are_the_published_number(published_names):
    """Trainable parameters as published, and the frozen convolutions' weights."""
    counts = {
        'single_scale': 33_844_193,
        'single_scale_dc5': 33_844_193,
        'multi_scale': 39_847_265,
        'refine': 40_627_260,
        'two_stage': 40_959_129,
    }
    for variant, expected in counts.items():
        model = ddetr_np.build_model(variant)
        assert sum(p.data.size for p in model.params()) == expected
        frozen = [
            p.data.size
            for _, p in model.named_params()
            if not p.learns and not p.buffer
        ]
        assert sum(frozen) == 222_400
