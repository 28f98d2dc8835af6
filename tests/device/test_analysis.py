"""What is looked at, judged and counted of a model on a device."""

import numpy as np
import pytest

from ddetr_np import Scenes, build_model, detect
from ddetr_np.analysis.complexity import counting
from ddetr_np.analysis.gradient_norm import gradient_norms
from ddetr_np.analysis.gradient_shares import gradient_shares
from ddetr_np.analysis.look import decoder_sampling, encoder_sampling, look
from ddetr_np.analysis.reads import decoder_reads, encoder_reads
from ddetr_np.analysis.reference_points import first_stage, learned_points, steps
from ddetr_np.backend import plain, to_device
from ddetr_np.evaluate import evaluate
from ddetr_np.testing import check_operations
from ddetr_np.testing_model import SMALL, check_model, random_batch, randomise
from ddetr_np.views.explorer import pack

SIZE = {'short': 60, 'long': 90}
PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def model_on(device, variant='refine', **fields):
    fields = {'backbone': 'resnet18', 'encoder_layers': 1, **SMALL, **fields}
    return randomise(build_model(variant, dtype='float64', **fields)).to(device)


@pytest.fixture
def both(gpu):
    """Compare what a function makes of a model on the host and on the device."""

    def both(function, variant='refine', tolerance=1e-9, **fields):
        with plain():
            expected = function(model_on('cpu', variant, **fields))
        gpu.check(function(model_on(gpu.name, variant, **fields)), expected, tolerance)

    return both


def test_detections(both):
    def found(model):
        d = detect(model, [PICTURE, PICTURE[:40]], 0, 10, batch=2, **SIZE)
        return [(each.scores, each.labels, each.boxes) for each in d]

    both(found)


def test_figures_of_a_data_set(both):
    def figures(model):
        return evaluate(model, Scenes(3, 0, 64, 64), short=64, long=64).figures

    both(figures, num_classes=Scenes(1, 0, 64, 64).num_classes)


@pytest.mark.parametrize('keep', ['all', 'inputs'])
def test_sampling_points(both, keep):
    def sampled(model):
        seen = look(model, PICTURE, keep=keep, **SIZE)
        found = [sampling(seen, layer) for layer in (0, -1)
                 for sampling in (encoder_sampling, decoder_sampling)]  # fmt: skip
        arrays = [(s.p_hat, s.loc, s.A) for s in found]
        reads = encoder_reads(seen, 5), decoder_reads(seen, 2)
        return arrays, [(r.reference, r.loc, r.A) for r in reads], reads[1].box

    both(sampled)


def test_gradients_by_the_pixel(both):
    def norms(model):
        seen = look(model, PICTURE, keep='all', **SIZE)
        found = gradient_norms(seen, 0, smooth=1.0)
        return found.maps, found.box, found.values

    both(norms)

    def shares(model):
        options = {'items': ('x', 'c'), 'threshold': 0, 'top': 1, **SIZE}
        return gradient_shares(model, [PICTURE], **options).shares

    both(shares)


def test_reference_points(both):
    both(learned_points)
    both(lambda m: steps(look(m, PICTURE, **SIZE))[1:], 'two_stage')
    both(lambda m: first_stage(look(m, PICTURE, **SIZE)), 'two_stage')


def test_the_explorer_s_page(double):
    packed = []
    for device in ('cpu', double.name):
        with plain():
            seen = look(model_on(device), PICTURE, keep='inputs', **SIZE)
            packed.append(pack(seen, 0.0, [gradient_norms(seen, 0)]))
    assert packed[0] == packed[1]


def test_products_counted(gpu):
    counts = []
    for device in ('cpu', gpu.name):
        model = model_on(device)
        images, mask, _ = random_batch(SMALL['num_classes'])
        with counting(model) as count:
            model.forward(*(to_device(a, device) for a in (images, mask)))
        counts.append((count.macs(), count.sampled()))
    assert counts[0] == counts[1]


@pytest.mark.parametrize('name', ['linear.linear', 'ms_deform_attn.ms_deform_attn'])
def test_gradient_checks_of_operations(gpu, name):
    checks = list(check_operations(names=[name], device=gpu.name))
    assert {c.verdict for c in checks} == {'ok'}


@pytest.mark.gpu
def test_gradient_checks_of_all_operations(real):
    for check in check_operations(device=real.name):
        assert check.verdict == 'ok', check


@pytest.mark.gpu
@pytest.mark.parametrize('variant', ['multi_scale', 'two_stage'])
def test_gradient_checks_of_a_model(real, variant):
    model = model_on(real.name, variant)
    for check in check_model(model, *random_batch(SMALL['num_classes'])):
        assert check.verdict == 'ok', check
