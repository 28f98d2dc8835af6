import functools
import json
import os
import shutil
import zlib
from pathlib import Path

if 'PYTEST_XDIST_WORKER' in os.environ:  # a core each: threads would fight for them
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'DDETR_NP_THREADS'):
        os.environ.setdefault(name, '1')  # before NumPy reads it

import numpy as np
import pytest

import ddetr_np


@pytest.fixture(scope='session')
def shared():
    """The optional folder of oracles and pictures beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / 'shared'
    if not folder.is_dir():
        pytest.skip('needs the data folder ../shared beside the checkout')
    return folder


@pytest.fixture(scope='session')
def golden():
    """The folder of published numbers."""
    return Path(__file__).parent / 'golden'


@pytest.fixture(scope='session')
def published_names(golden):
    """{variant: {published name: shape}} of the five published variants."""
    return json.loads((golden / 'official_state_dicts.json').read_text())


def published_tensor(name, shape):
    """Draw a tensor from its published name: the rule behind the published numbers."""
    n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) >= 2:
        return n / np.sqrt(np.prod(shape[1:]))
    if name.endswith('running_var'):
        return 1 + 0.1 * abs(n)
    if name.endswith('weight'):
        return 1 + 0.1 * n
    if name.endswith('sampling_offsets.bias'):
        return 2 * n
    return 0.1 * n


@pytest.fixture(scope='session')
def published_weights(published_names):
    """Return weights of a variant by the rule: {published name: array}."""

    def weights(variant):
        shapes = published_names[variant]
        return {name: published_tensor(name, tuple(s)) for name, s in shapes.items()}

    return weights


@pytest.fixture(scope='session')
def published_model(published_weights):
    """Return a model of a variant with the weights of the rule, built once."""

    @functools.cache
    def build(variant, dtype='float64'):
        model = ddetr_np.build_model(variant, dtype=dtype, dropout=0.0)
        model.load_state_dict(published_weights(variant))
        return model

    return build


@pytest.fixture(scope='session')
def published_pass(golden):
    """Return a variant's published arrays, and its pictures: images, mask, targets."""

    @functools.cache
    def load(variant):
        with np.load(golden / f'official_{variant}.npz') as file:
            arrays = dict(file)
        pictures = [arrays[f'image{i}'].transpose(1, 2, 0) for i in (0, 1)]
        images, mask = ddetr_np.pad_batch([p.astype('float64') for p in pictures])
        targets = [
            {'labels': arrays[f'labels{i}'], 'boxes': arrays[f'boxes{i}']}
            for i in (0, 1)
        ]
        return arrays, images, mask, targets

    return load


@pytest.fixture(scope='session')
def tiny():
    """Fields of a configuration so small that it runs at once."""
    fields = 'C M K Nq ffn encoder_layers decoder_layers num_classes width'
    return dict(zip(fields.split(), (16, 2, 2, 6, 24, 2, 3, 4, 4)))


@pytest.fixture(scope='session')
def browser():
    """A headless Chromium, Debian's, by Playwright."""
    playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright')
    path = shutil.which('chromium') or shutil.which('chromium-browser')
    if path is None:
        pytest.skip('needs chromium')
    flags = ['--no-sandbox', '--disable-gpu', '--disable-background-networking']
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope='session')
def need_gpu():
    """Return 'cuda:0'; skip where there is no GPU that CuPy can use."""

    @functools.cache
    def need():
        pytest.importorskip('cupy', exc_type=ImportError)
        try:
            ddetr_np.backend.need_device('cuda:0')
        except ddetr_np.InputError as error:
            pytest.skip(str(error))
        return 'cuda:0'

    return need
