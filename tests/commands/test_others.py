import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ddetr_np
from ddetr_np import backend
from ddetr_np.commands import doctor


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
    monkeypatch.setattr(doctor, '_cuda_driver', lambda: (12040, None))
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
    assert doctor.CUDA_13 == backend.OLDEST[13]
    for oldest, extra in ((None, 'gpu13'), (75, 'gpu13'), (70, 'gpu12')):
        driver = 13000, oldest
        monkeypatch.setattr(doctor, '_cuda_driver', lambda driver=driver: driver)
        assert f"'ddetr-np[{extra}]'" in run('doctor').stdout


class Driver:
    """NVIDIA's library as `doctor` asks it, with two cards."""

    cards = (9, 0), (7, 0)

    def cuInit(self, flags):
        return 0

    def cuDriverGetVersion(self, answer):
        answer._obj.value = 13000
        return 0

    def cuDeviceGetCount(self, answer):
        answer._obj.value = len(self.cards)
        return 0

    def cuDeviceGet(self, answer, index):
        answer._obj.value = 10 + index
        return 0

    def cuDeviceGetAttribute(self, answer, which, card):
        answer._obj.value = self.cards[card - 10][{75: 0, 76: 1}[which]]
        return 0


@pytest.mark.parametrize(('cards', 'oldest'), [(((9, 0), (7, 5)), 75), ((), None)])
def test_what_doctor_asks_the_driver(monkeypatch, cards, oldest):
    monkeypatch.setattr(Driver, 'cards', cards)
    for library in ('CDLL', 'WinDLL'):
        monkeypatch.setattr(
            doctor.ctypes, library, lambda name: Driver(), raising=False
        )
    assert doctor._cuda_driver() == (13000, oldest)
    monkeypatch.setattr(Driver, 'cuDriverGetVersion', lambda self, answer: 1)
    assert doctor._cuda_driver() is None


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


def test_demo(run, here):
    result = run('demo', '--out', 'new', '--seed', '4')
    assert result.exit_code == 0, result.output
    names = ['', '-encoder', '-decoder', '-gradients']
    paths = [here / 'new' / f'ddetr-np-demo{name}.png' for name in names]
    assert sorted(paths) == sorted((here / 'new').iterdir())
    for path in paths:
        assert path.name in result.stdout
        with Image.open(path) as image:
            assert min(image.size) >= 384
    # it has learnt: most figures are found
    counts = re.search(r'(\d+) of (\d+) figures', result.stdout).groups()
    right, drawn = map(int, counts)
    assert right >= 0.6 * drawn
    first = paths[0].read_bytes()
    run('demo', '--out', 'new', '--seed', '4')
    assert paths[0].read_bytes() == first
    run('demo', '--out', 'new')  # another scene
    assert paths[0].read_bytes() != first


def test_demo_counts_what_it_found():
    from ddetr_np.commands.demo import count_found
    from ddetr_np.data.scenes import Scene
    from ddetr_np.evaluate.detection import Detections

    box = np.array([[10, 10, 30, 30], [12, 10, 32, 30], [50, 50, 70, 80.0]])
    scene = Scene(None, box[[0, 2]], np.array([1, 2]), None)

    def found(*labels):
        n = len(labels)
        return Detections(np.ones(n), np.array(labels), ['x'] * n, box[:n], (90, 90))

    assert count_found(scene, found(1, 1, 2)) == 2  # the second is a duplicate
    assert count_found(scene, found(0, 1, 0)) == 1
    assert count_found(scene, found()) == 0


def test_demo_refuses(run, here):
    (here / 'file').touch()
    result = run('demo', '--out', 'file')
    assert result.exit_code == 2
    assert 'expected a folder' in result.stderr
    assert run('demo', '--seed', '-1').exit_code == 2
