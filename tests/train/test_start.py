"""What a run starts from: data, checkpoints of other classes, backbones, advice."""

import json

import numpy as np
import pytest
from PIL import Image

import ddetr_np
from ddetr_np import InputError, Settings
from ddetr_np.config import VARIANTS
from ddetr_np.train.start import lr_advice
from ddetr_np.weights import write_tensors

SIZES = {  # everything but what makes a variant, 91 classes
    'width': 4, 'C': 16, 'K': 2, 'Nq': 6, 'ffn': 24, 'encoder_layers': 1,
    'decoder_layers': 2,
}  # fmt: skip
CELLS = ('RBC', 'WBC', 'Platelets')


def write_cells(folder, pictures=4, names=CELLS, ids=(1, 4, 7)):
    """A data set of noise with the classes of bccd, category ids with holes."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    images, annotations = [], []
    for i in range(pictures):
        pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.png')
        images.append({'id': i, 'file_name': f'{i}.png', 'width': 64, 'height': 48})
        annotations.append({
            'id': i, 'image_id': i, 'category_id': ids[i % 3],
            'bbox': [5 + i, 6, 20, 24], 'area': 480, 'iscrowd': 0,
        })  # fmt: skip
    categories = [{'id': id, 'name': name} for id, name in zip(ids, names)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (folder / 'cells.json').write_text(json.dumps(content))
    return folder / 'cells.json'


@pytest.fixture
def cells(tmp_path):
    return write_cells(tmp_path / 'cells')


def few_steps(cells, **changes):
    return Settings().replace(
        data=str(cells), val=str(cells), epochs=1, batch=1, accumulate=2, workers=0,
        short=48, long=64, augment={'kind': 'none'}, lr=1e-3,
    ).replace(**changes)  # fmt: skip


@pytest.mark.parametrize('variant', VARIANTS)
def test_fine_tuning_from_91_classes(variant, cells, tmp_path):
    old = ddetr_np.build_model(variant, seed=1, **SIZES)
    assert old.config.num_classes == 91
    # as the authors' scripts save it: a bare state dict under 'model'
    write_tensors(tmp_path / 'old.pth', old.state_dict())
    settings = few_steps(
        cells, weights=str(tmp_path / 'old.pth'), variant=variant,
        model={'Nq': SIZES['Nq']},  # two-stage weights do not tell
    )
    said, losses = {}, []

    def tell(kind, **facts):
        said[kind] = facts
        if kind == 'start':
            state = facts['state']
            said['before'] = state.model.state_dict()
        elif kind == 'step':
            losses.append(facts['record']['loss'])

    model, report = ddetr_np.train_model(settings, tmp_path / 'run', tell=tell)
    size = {'short': settings.short, 'long': settings.long}
    assert model.config == old.config.replace(num_classes=3, names=CELLS, **size)
    assert model.config.variant == variant
    kept = said['weights']['kept']
    assert kept.renewed
    assert all('class_embed' in name for name in kept.renewed)
    assert len(kept.kept) + len(kept.renewed) == len(list(model.named_params()))
    assert not kept.unused
    state = old.state_dict()
    for name in kept.kept:
        np.testing.assert_array_equal(said['before'][name], state[name], err_msg=name)
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert report.pictures == 4
    written = ddetr_np.load_model(tmp_path / 'run' / 'model.safetensors')
    assert written.config == model.config
    changed = [
        n for n, a in written.state_dict().items() if not np.array_equal(
            a, said['before'][n]
        )
    ]
    assert any('sampling_offsets' in name for name in changed)
    assert any('layer2' in name for name in changed)
    assert not any('layer1' in name for name in changed)  # frozen, as published


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_fine_tuning_at_full_size(variant, shared, published_weights, tmp_path):
    """The published sizes and names, to the cells of bccd."""
    weights = published_weights(variant)
    tensors = {n: a.astype('float32') for n, a in weights.items()}
    write_tensors(tmp_path / 'published.pth', tensors)
    settings = few_steps(
        shared / 'data/bccd/ImageSets/Main/train.txt', val='', batch=1, accumulate=1,
        weights=str(tmp_path / 'published.pth'), variant=variant, lr=1e-4,
        short=128, long=160,
    )
    losses = []

    def tell(kind, **facts):
        if kind == 'step':
            losses.append(facts['record']['loss'])

    with pytest.raises(ddetr_np.train.loop.Interrupted):
        ddetr_np.train_model(
            settings, tmp_path / 'run', tell=tell, stop=lambda: len(losses) == 3
        )
    assert np.isfinite(losses).all()
    model = ddetr_np.load_model(tmp_path / 'run' / 'checkpoint.safetensors')
    assert sorted(model.config.names) == sorted(CELLS)
    assert model.config.variant == variant


def test_another_variant_keeps_what_fits(cells, tmp_path):
    """From multi_scale to two-stage with refinement: the new parts are listed."""
    old = ddetr_np.build_model('multi_scale', seed=1, **SIZES)
    ddetr_np.save_model(old, tmp_path / 'old.safetensors')
    said = {}

    def tell(kind, **facts):
        said[kind] = facts

    settings = few_steps(
        cells, weights=str(tmp_path / 'old.safetensors'), variant='two_stage', val=''
    )
    model, _ = ddetr_np.train_model(settings, tmp_path / 'run', tell=tell)
    assert model.config.two_stage
    kept = said['weights']['kept']
    assert 'transformer.enc_output.weight' in kept.renewed
    assert 'query_embed.weight' in kept.unused
    assert 'transformer.encoder.layers.0.linear1.weight' in kept.kept


def test_the_same_classes_keep_their_heads(cells, tmp_path):
    settings = few_steps(
        cells, variant='refine', model=SIZES | {'freeze_at': 0}, val=''
    )
    ddetr_np.train_model(settings, tmp_path / 'first')
    said = {}

    def tell(kind, **facts):
        said[kind] = facts

    again = few_steps(
        cells, weights=str(tmp_path / 'first' / 'model.safetensors'), val=''
    )
    ddetr_np.train_model(again, tmp_path / 'second', tell=tell)
    assert said['weights']['kept'].renewed == []
    # as many classes, but of other things
    other = write_cells(tmp_path / 'others', names=('cat', 'dog', 'cow'))
    model, _ = ddetr_np.train_model(
        again.replace(data=str(other)), tmp_path / 'third', tell=tell
    )
    assert model.config.names == ('cat', 'dog', 'cow')
    renewed = said['weights']['kept'].renewed
    assert renewed
    assert all('class_embed' in name for name in renewed)


def test_coco_ids_as_they_are(tmp_path):
    names = 'person', 'bicycle', 'car'
    cells = write_cells(tmp_path / 'coco', names=names, ids=(1, 2, 3))
    settings = few_steps(cells, labels='ids', model=SIZES | {'freeze_at': 0})
    model, report = ddetr_np.train_model(settings, tmp_path / 'run')
    assert (model.config.num_classes, model.config.names) == (91, None)
    assert [(c.name, c.objects) for c in report.classes if c.objects] == [
        ('person', 2), ('bicycle', 1), ('car', 1)
    ]


def test_a_backbone(cells, tmp_path):
    donor = ddetr_np.build_model('multi_scale', seed=7, **SIZES)
    prefix = 'backbone.0.body.'
    resnet = {
        n.removeprefix(prefix): a for n, a in donor.state_dict().items() if prefix in n
    }
    write_tensors(tmp_path / 'resnet.pth', resnet)
    said = {}

    def tell(kind, **facts):
        said[kind] = facts
        if kind == 'start':
            said['before'] = facts['state'].model.state_dict()

    settings = few_steps(
        cells, model=SIZES, val='', lr=2e-5,
        backbone_weights=str(tmp_path / 'resnet.pth'),
    )
    ddetr_np.train_model(settings, tmp_path / 'run', tell=tell)
    for name, array in resnet.items():
        np.testing.assert_array_equal(said['before'][prefix + name], array)
    assert 'warning' not in said


def test_frozen_random_weights_are_warned_of(cells, tmp_path):
    warnings = []

    def tell(kind, **facts):
        if kind == 'warning':
            warnings.append(facts['text'])

    settings = few_steps(cells, model=SIZES, val='', lr=2e-5)
    ddetr_np.train_model(settings, tmp_path / 'a', tell=tell)
    assert len(warnings) == 1
    assert 'some are frozen' in warnings[0]
    assert 'model.freeze_at=0' in warnings[0]


def test_warnings_of_what_is_given_away(cells, tmp_path):
    old = ddetr_np.build_model('multi_scale', short=48, long=64, **SIZES)
    ddetr_np.save_model(old, tmp_path / 'old.safetensors')
    same = few_steps(cells, weights=str(tmp_path / 'old.safetensors'), lr=1e-5)
    said = []

    def warnings(**changes):
        said.clear()
        run = tmp_path / f'run{changes}'
        ddetr_np.train_model(same.replace(**changes), run, tell=tell)
        return list(said)

    def tell(kind, **facts):
        if kind == 'warning':
            said.append(facts['text'])

    assert warnings() == []
    (size,) = warnings(short=56)
    assert 'in pictures of 48 to 64 pixels' in size
    assert '--set short=48 --set long=64' in size
    (random,) = warnings(**{'model.ffn': 12})
    assert 'do not fit this model' in random
    assert 'linear1' in random
    (rise,) = warnings(warmup=1)
    assert 'rises for 1 of the 2 steps' in rise


def test_data_that_changed(cells, tmp_path):
    settings = few_steps(cells, model=SIZES, val='')
    ddetr_np.train_model(settings, tmp_path / 'run')
    content = json.loads(cells.read_text())
    content['annotations'].pop()
    cells.write_text(json.dumps(content))
    with pytest.raises(InputError, match='has changed since the run began: ids'):
        ddetr_np.train_model(settings, tmp_path / 'run', resume=True)


def test_no_data():
    with pytest.raises(InputError, match='give --data PATH'):
        ddetr_np.train_model(Settings(), 'nowhere')


@pytest.mark.parametrize(
    ('lr', 'pictures', 'fits'),
    [
        (2e-4, 32, True),
        (2.5e-5, 4, True),  # in proportion
        (7.1e-5, 4, True),  # by the root
        (2e-4, 4, False),
        (1e-5, 4, False),
        (2e-4, 16, True),
        (2e-4, 256, False),
        (1e-3, 256, True),
    ],
)
def test_advice_on_the_rate(lr, pictures, fits):
    advice = lr_advice(lr, pictures)
    assert (advice is None) == fits
    if advice:
        assert f'lr = {lr:g} with {pictures} pictures' in advice
        assert f'{2e-4 * pictures / 32:.2g} in proportion' in advice
        assert f'{2e-4 * (pictures / 32) ** 0.5:.2g} by the square root' in advice
