"""A fault of 0.1 % in any single backward pass of the package is found.

Every `*_backward` of `ops` is planted where its callers find it, and so is every twin.
Every function and method of `nn` whose name ends in `backward`, and the criterion's
gradient, is planted in whole detectors: in each gradient that it returns, and in what
it adds to the gradients of parameters.
"""

import contextlib
import importlib
import inspect
import pkgutil
import sys

import numpy as np
import pytest

import ddetr_np
from ddetr_np import backend, nn, testing_model
from ddetr_np.fast import few_queries
from ddetr_np.loss import Criterion
from ddetr_np.module import Module
from ddetr_np.testing import CASES, cases, check_operations, directions, operation

FAULT = 1.001
OWN = 'what it adds to parameters'  # beside the paths of what is returned


def replace_everywhere(monkeypatch, right, wrong):
    """Put a function in another's place, in every module that holds it."""
    count = 0
    for name, module in list(sys.modules.items()):
        if name.split('.')[0] == 'ddetr_np':
            for attribute, value in list(vars(module).items()):
                if value is right:
                    monkeypatch.setattr(module, attribute, wrong)
                    count += 1
    assert count, f'{right} is nowhere'


def leaves(result, path=()):
    """Yield the path to each array in what a backward pass returned."""
    if isinstance(result, (tuple, list)):
        for i, item in enumerate(result):
            yield from leaves(item, (*path, i))
    elif isinstance(result, (np.ndarray, np.floating)):
        yield path


def scaled(result, path):
    """Return the result with the array at the path 0.1 % too large, if it is there."""
    if not path:
        is_array = isinstance(result, (np.ndarray, np.floating))
        return result * FAULT if is_array else result
    if not isinstance(result, (tuple, list)) or path[0] >= len(result):
        return result
    items = list(result)
    items[path[0]] = scaled(items[path[0]], path[1:])
    if hasattr(result, '_make'):
        return result._make(items)
    return type(result)(items)


# ---- operations


def verdicts(name):
    return [c.verdict for c in check_operations(names=[name])]


@pytest.mark.parametrize('plain', [True, False], ids=['plain', 'twins'])
@pytest.mark.parametrize('name', CASES)
def test_in_an_operation(monkeypatch, name, plain):
    """Where callers find it: whichever road they take, and in each gradient."""
    _, right = operation(name)
    with backend.plain() if plain else contextlib.nullcontext():
        for position in range(max(len(case.inputs) for case in cases(name))):

            def wrong(*args, position=position, **keywords):
                result = right(*args, **keywords)
                return scaled(result, (position,) if isinstance(result, tuple) else ())

            vars(wrong).update(vars(right))  # a composite calls `.plain`
            with monkeypatch.context() as patch:
                replace_everywhere(patch, right, wrong)
                assert 'fail' in verdicts(name), position


TWINS = sorted(
    key
    for key in backend.twins()
    if key[0].endswith('_backward') and key[1] == 'numpy'
)
OF_METHODS = [key for key in TWINS if key[0].removesuffix('_backward') not in CASES]


@pytest.mark.parametrize('key', [k for k in TWINS if k not in OF_METHODS], ids=str)
def test_in_a_twin(key):
    name = key[0].removesuffix('_backward')
    right = backend.twins()[key]
    for position in range(max(len(case.inputs) for case in cases(name))):

        def wrong(*args, position=position, **keywords):
            result = right(*args, **keywords)
            return scaled(result, (position,) if isinstance(result, tuple) else ())

        with backend.substitute({**backend.twins(), key: wrong}):
            assert 'fail' in verdicts(name), position
            with backend.plain():
                assert set(verdicts(name)) == {'ok'}


# ---- the detector


def backwards():
    """Yield (name, owner, attribute) of every backward pass in nn."""
    for info in pkgutil.iter_modules(nn.__path__):
        module = importlib.import_module(f'{nn.__name__}.{info.name}')
        for name, value in vars(module).items():
            if getattr(value, '__module__', None) != module.__name__:
                continue
            if inspect.isfunction(value) and name.endswith('backward'):
                yield f'{info.name}.{name}', module, name
            elif inspect.isclass(value):
                for method in vars(value):
                    if method.endswith('backward'):
                        yield f'{info.name}.{name}.{method}', value, method
    yield 'criterion', Criterion, '__call__'


TARGETS = {name: place for name, *place in backwards()}
LEAST = {'dropout': 0.0, 'encoder_layers': 1, 'decoder_layers': 2}
STRUCTURES = {  # together they take every road
    'two_stage': {'variant': 'two_stage', 'L': 3},
    'learning norms': {
        'variant': 'multi_scale',
        'backbone': 'resnet18',
        'freeze_at': 0,
        'frozen_norm': False,
    },
}


def plant(monkeypatch, name, wrong):
    owner, attribute = TARGETS[name]
    if inspect.isclass(owner):
        monkeypatch.setattr(owner, attribute, wrong)
    else:
        replace_everywhere(monkeypatch, getattr(owner, attribute), wrong)


def params_in(*things):
    """Yield the learning Params of the modules among the arguments, each once."""
    for thing in things:
        if isinstance(thing, Module):
            yield from thing.params()
        elif isinstance(thing, (tuple, list)):
            yield from params_in(*thing)


def recorder(right, seen):
    def record(*args, **keywords):
        before = {id(p): (p, p.grad.copy()) for p in params_in(*args)}
        result = right(*args, **keywords)
        seen.update(leaves(result))
        if any((p.grad != g).any() for p, g in before.values()):
            seen.add((OWN,))
        return result

    return record


def faulty(right, path):
    def wrong(*args, **keywords):
        if path != (OWN,):
            return scaled(right(*args, **keywords), path)
        before = {id(p): (p, p.grad.copy()) for p in params_in(*args)}
        result = right(*args, **keywords)
        for p, g in before.values():
            p.grad = g + FAULT * (p.grad - g)
        return result

    return wrong


class Detector:
    """A tiny model whose slopes are measured once: a faulty backward moves none."""

    def __init__(self, fields):
        fields = {**testing_model.SMALL, **LEAST, **fields}
        model = ddetr_np.build_model(dtype='float64', **fields)
        self.model = testing_model.randomise(model)
        self.batch = testing_model.random_batch(fields['num_classes'])
        self.slopes = []

    def check(self):
        """Return the checks of the true derivative."""
        return list(testing_model.check_model(self.model, *self.batch, block=False))

    def measure(self, monkeypatch):
        def measured(*args):
            self.slopes.append(measure(*args))
            return self.slopes[-1]

        measure = directions._measure
        monkeypatch.setattr(directions, '_measure', measured)
        return self.check()

    def check_again(self, monkeypatch):
        """`check`, with the slopes that were measured."""
        slopes = iter(self.slopes)
        monkeypatch.setattr(directions, '_measure', lambda *args: next(slopes))
        return self.check()


@pytest.fixture(scope='module')
def detectors():
    """{structure: (Detector, {target: paths of the gradients that it returned})}."""
    made = {}
    with backend.plain():
        for structure, fields in STRUCTURES.items():
            detector = Detector(fields)
            seen = {name: set() for name in TARGETS}
            with pytest.MonkeyPatch.context() as patch:
                for name, (owner, attribute) in TARGETS.items():
                    right = getattr(owner, attribute)
                    plant(patch, name, recorder(right, seen[name]))
                checks = detector.measure(patch)
            assert {c.verdict for c in checks} == {'ok'}
            # of the criterion (total, losses, dout) only dout is a gradient
            seen['criterion'] = {p for p in seen['criterion'] if p[0] == 2}
            made[structure] = detector, seen
    return made


def test_every_backward_of_nn_is_known_and_used(detectors):
    assert len(TARGETS) > 20
    for name in TARGETS:
        assert any(seen[name] for _, seen in detectors.values()), name


def test_without_a_fault_nothing_is_found(detectors, monkeypatch):
    with backend.plain():
        for detector, _ in detectors.values():
            assert {c.verdict for c in detector.check_again(monkeypatch)} == {'ok'}


@pytest.mark.parametrize('name', TARGETS)
def test_in_the_detector(detectors, name):
    owner, attribute = TARGETS[name]
    right = getattr(owner, attribute)
    for structure, (detector, seen) in detectors.items():
        for path in seen[name]:
            with backend.plain(), pytest.MonkeyPatch.context() as patch:
                plant(patch, name, faulty(right, path))
                checks = detector.check_again(patch)
            assert 'fail' in {c.verdict for c in checks}, (structure, path)


@pytest.mark.parametrize('key', OF_METHODS, ids=str)
def test_in_the_twin_of_a_method(key, detectors, monkeypatch):
    monkeypatch.setattr(few_queries, 'COST', 0)  # however few the tokens
    right, used = backend.twins()[key], set()
    for structure, (detector, _) in detectors.items():
        seen = set()
        with backend.substitute({**backend.twins(), key: recorder(right, seen)}):
            checks = detector.check_again(monkeypatch)
        assert {c.verdict for c in checks} == {'ok'}
        for path in seen:
            wrong = faulty(right, path)
            with backend.substitute({**backend.twins(), key: wrong}):
                checks = detector.check_again(monkeypatch)
            assert 'fail' in {c.verdict for c in checks}, (structure, path)
        used |= seen
    assert used
