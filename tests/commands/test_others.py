import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ddetr_np


def test_version_and_help(run):
    assert run('--version').output.split()[-1] == ddetr_np.__version__
    for command in ((), ('detect',), ('demo',), ('convert',), ('doctor',)):
        short, long = run(*command, '-h'), run(*command, '--help')
        assert short.exit_code == 0
        assert short.output == long.output
        assert 'Usage:' in short.output


def test_help_imports_nothing_heavy():
    code = (
        'import sys, ddetr_np.cli; '
        'heavy = {"numpy", "scipy", "matplotlib", "PIL", "rich"} & set(sys.modules); '
        'sys.exit(f"imported: {heavy}" if heavy else 0)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_command(run):
    result = run('detekt')
    assert result.exit_code == 2
    assert 'detekt' in result.stderr


def test_run_as_a_module():
    command = [sys.executable, '-m', 'ddetr_np', '--version']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ddetr_np.__version__ in done.stdout


# ---- convert


def test_convert(run, weights, here):
    result = run('convert', weights, 'a.npz')
    assert result.exit_code == 0, result.output
    assert 'refine, resnet18, 91 classes' in result.stdout
    wanted = ddetr_np.load_model(weights).state_dict()
    for name, array in ddetr_np.load_model('a.npz').state_dict().items():
        np.testing.assert_array_equal(array, wanted[name])


@pytest.mark.parametrize(
    ('src', 'dst', 'message'),
    [
        ('gone.pth', 'a.npz', 'gone.pth'),
        (None, 'a.txt', 'a.txt'),
        (None, 'none/a.npz', 'folder none'),
    ],
)
def test_convert_refuses(run, weights, here, src, dst, message):
    result = run('convert', src or weights, dst)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(here.iterdir()) == []


# ---- doctor


def test_doctor(run):
    result = run('doctor')
    assert result.exit_code == 0
    for word in ('ddetr-np', 'python', 'memory', 'BLAS', 'threads', 'CuPy', 'CUDA'):
        assert word in result.stdout
    assert np.__version__ in result.stdout


EXTRAS = ('huggingface_hub', 'tensorboardX')


def test_doctor_names_the_command_for_what_is_missing(run, monkeypatch):
    from ddetr_np.commands import doctor

    known = doctor.importlib.metadata.version
    requirements = ['numpy>=99.0', 'absent>=1.2', 'scipy>=1', 'x>=1; extra == "dev"']

    def version(name):
        if name in ('absent', *EXTRAS, *doctor.CUPY):
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(doctor.importlib.metadata, 'version', version)
    monkeypatch.setattr(doctor.importlib.metadata, 'requires', lambda _: requirements)
    monkeypatch.setattr(doctor, '_cuda_driver', lambda: 12040)
    output = run('doctor').stdout
    advice = [line.strip() for line in output.split('missing:')[1].splitlines() if line]
    assert advice == [
        "pip install 'numpy>=99.0'",
        "pip install 'absent>=1.2'",
        "pip install 'ddetr-np[hub]'",
        "pip install 'ddetr-np[tensorboard]'",
        "pip install 'ddetr-np[gpu12]'",
    ]
    assert 'too old' in output
    assert 'for CUDA 12.4' in output
    monkeypatch.setattr(doctor, '_cuda_driver', lambda: 13000)
    assert "'ddetr-np[gpu13]'" in run('doctor').stdout


def test_doctor_without_the_scientific_stack():
    """It must speak when half of what it reports on cannot be imported."""
    code = (
        'import sys\n'
        'for name in ("numpy", "scipy", "rich", "threadpoolctl", "PIL"):\n'
        '    sys.modules[name] = None\n'
        'from ddetr_np.cli import cli\n'
        'cli(["doctor"])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'BLAS' in done.stdout


# ---- demo


@pytest.fixture
def small_model(monkeypatch):
    from ddetr_np.nn import ddetr

    build = ddetr.build_model
    small = {'backbone': 'resnet18', 'width': 8, 'C': 32, 'M': 2, 'Nq': 20, 'ffn': 64}

    def build_small(variant, **fields):
        assert variant == 'two_stage'
        return build(variant, **small, encoder_layers=1, decoder_layers=1, **fields)

    monkeypatch.setattr(ddetr, 'build_model', build_small)


def test_demo(run, here, small_model):
    result = run('demo', '--out', 'new')
    assert result.exit_code == 0, result.output
    assert 'UNTRAINED' in result.stdout
    path = here / 'new' / 'ddetr-np-demo.png'
    assert path.name in result.stdout
    with Image.open(path) as image:
        assert image.size == (640, 480)
    first = path.read_bytes()
    run('demo', '--out', 'new')
    assert path.read_bytes() == first
    run('demo', '--out', 'new', '--seed', '5')
    assert path.read_bytes() != first


def test_demo_refuses(run, here):
    (here / 'file').touch()
    result = run('demo', '--out', 'file')
    assert result.exit_code == 2
    assert 'expected a folder' in result.stderr
    assert run('demo', '--seed', '-1').exit_code == 2
