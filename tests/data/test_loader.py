import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddetr_np import Augment, InputError, Loader, read_dataset
from ddetr_np.data.augment import published
from ddetr_np.data.dataset import Dataset, make_example
from ddetr_np.data.prepare import normalise
from ddetr_np.data.scenes import Scenes
from ddetr_np.data.workers import Pool

LIVELY = Augment(
    (32, 40), 99, flip_y=0.5, crop=0.5, brightness=0.2, contrast=0.2, saturation=0.2,
    hue=0.1,
)


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    return Dataset(
        [
            make_example(
                i, rng.integers(0, 256, (40, 50 + i, 3), np.uint8), (40, 50 + i),
                [[5, 4, 25, 24], [10, 10, 30, 30]], [i % 2, 1], [0, i == 3],
            )
            for i in range(11)
        ],
        ('a', 'b'),
    )


def same(a, b):
    assert a.ids == b.ids
    assert_array_equal(a.images, b.images)
    assert_array_equal(a.mask, b.mask)
    for s, t in zip(a.targets, b.targets):
        assert_array_equal(s['boxes'], t['boxes'])
        assert_array_equal(s['labels'], t['labels'])


def test_a_batch(dataset):
    loader = Loader(dataset, 3, Augment((40,), 99, flip_x=0), shuffle=False)
    batch = next(loader.epoch())
    assert batch.ids == [0, 1, 2]
    assert batch.images.shape == (3, 40, 52, 3)
    assert batch.images.dtype == np.float32
    assert_array_equal(batch.images[0, :, :50], normalise(dataset[0].picture()))
    assert batch.mask[0, :, 50:].all()
    assert not batch.mask[0, :, :50].any()
    wanted = [[15 / 50, 14 / 40, 20 / 50, 0.5], [20 / 50, 0.5, 20 / 50, 0.5]]
    assert_allclose(batch.targets[0]['boxes'], wanted)
    assert_array_equal(batch.targets[0]['labels'], [0, 1])


def test_crowds_are_not_trained_on(dataset):
    loader = Loader(dataset, 1, Augment((40,), 99), shuffle=False)
    sizes = [len(batch.targets[0]['labels']) for batch in loader.epoch()]
    assert sizes == [2, 2, 2, 1] + [2] * 7


def test_epochs(dataset):
    loader = Loader(dataset, 3, LIVELY)
    assert len(loader) == 3
    first, second = ([i for b in loader.epoch(e) for i in b.ids] for e in (0, 1))
    assert len(set(first)) == 9
    assert first != second
    assert sorted(loader.order(0)) == list(range(11))
    whole = Loader(dataset, 3, LIVELY, last=True)
    assert [len(b.ids) for b in whole.epoch()] == [3, 3, 3, 2]
    other = Loader(dataset, 3, LIVELY, seed=1)
    assert [i for b in other.epoch(0) for i in b.ids] != first


def test_chance_changes_with_epoch_and_seed(dataset):
    def pictures(seed, epoch):
        loader = Loader(dataset, 11, LIVELY, seed=seed, shuffle=False)
        return next(loader.epoch(epoch)).images.tobytes()

    assert len({pictures(s, e) for s in (0, 1) for e in (0, 1)}) == 4
    assert pictures(0, 1) == pictures(0, 1)


def test_any_number_of_workers_and_any_start(dataset):
    wanted = list(Loader(dataset, 2, LIVELY, seed=3).epoch(2))
    for workers in (1, 3):
        with Loader(dataset, 2, LIVELY, seed=3, workers=workers, ahead=1) as loader:
            got = list(loader.epoch(2))
            assert len(got) == 5
            for a, b in zip(got, wanted):
                same(a, b)
            for a, b in zip(loader.epoch(2, start=3), wanted[3:], strict=True):
                same(a, b)
            # an epoch left in the middle disturbs no other
            epoch = loader.epoch(0)
            next(epoch)
            epoch.close()
            same(next(loader.epoch(2)), wanted[0])


def test_fresh_scenes():
    scenes = Scenes(4, seed=1, H=32, W=48, fresh=True)
    with Loader(scenes, 2, Augment((32,), 48), workers=1, shuffle=False) as loader:
        first, second = (next(loader.epoch(e)) for e in (0, 1))
    assert not np.array_equal(first.images, second.images)
    still = Scenes(4, seed=1, H=32, W=48)
    assert_array_equal(still.at(2, 5).picture(), still[2].picture())


@pytest.mark.parametrize('workers', [0, 1])
def test_a_bad_picture_is_named_or_replaced(coco_set, workers):
    path = coco_set.folder / 'pictures' / '1.jpg'
    path.write_bytes(path.read_bytes()[:800])
    dataset = read_dataset(coco_set.path)
    fields = {'shuffle': False, 'workers': workers}
    with Loader(dataset, 1, Augment((40,), 99), **fields) as loader:
        epoch = loader.epoch()
        assert next(epoch).ids == [10]
        with pytest.raises(InputError, match=r'1\.jpg is damaged'):
            next(epoch)
    with Loader(dataset, 1, Augment((40,), 99), skip_bad=True, **fields) as loader:
        for _ in range(2):
            assert [b.ids for b in loader.epoch()] == [[10], [12], [12]]
        assert loader.skipped == {'damaged picture': 1}  # counted once


def test_all_pictures_are_bad(coco_set):
    dataset = read_dataset(coco_set.path)
    for path in (coco_set.folder / 'pictures').iterdir():
        path.write_text('text')
    with pytest.raises(InputError, match='none of its pictures'):
        next(Loader(dataset, 1, skip_bad=True).epoch())


class Code:
    """A function that another process can have too: tests cannot be imported there."""

    def __init__(self, code):
        self.code = code

    def __call__(self, *arguments):
        return eval(self.code)(*arguments)

    def __reduce__(self):
        return eval, (self.code,)


@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_in_the_augmentation_names_the_picture(coco_set, workers):
    dataset = read_dataset(coco_set.path)
    broken = Code('lambda picture, target, rng: 1 / 0')
    with Loader(dataset, 1, broken, shuffle=False, workers=workers) as loader:
        with pytest.raises(ZeroDivisionError) as error:
            next(loader.epoch())
    assert '0.jpg' in error.value.__notes__[0]


def test_a_worker_that_dies_is_reported():
    pool = Pool(Code("lambda job: __import__('os')._exit(3)"), 1)
    with pytest.raises(InputError, match='worker process has ended'):
        list(pool.map([1, 2], 2))
    pool.close()


def test_published_augmentation_in_workers(dataset):
    small = Dataset([dataset[0]], ('a', 'b'))
    (wanted,) = Loader(small, 1, published).epoch()
    with Loader(small, 1, published, workers=1) as loader:
        (got,) = loader.epoch()
    same(got, wanted)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'batch': 0}, 'batch is 0'),
        ({'batch': 12}, 'less than a batch of 12'),
        ({'workers': -1}, 'workers is -1'),
        ({'workers': 1.5}, 'workers is 1.5'),
        ({'seed': -2}, 'seed is -2'),
    ],
)
def test_refuses(dataset, fields, message):
    with pytest.raises(InputError, match=message):
        Loader(dataset, **fields)


PROGRAM = textwrap.dedent("""
    import signal, sys, time
    from ddetr_np.data.loader import Loader
    from ddetr_np.data.augment import Augment
    from ddetr_np.data.scenes import Scenes

    if __name__ == '__main__':
        # tests that a shell runs in the background were told to ignore it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        scenes = Scenes(10**6, H=32, W=32)
        with Loader(scenes, 2, Augment((32,), 32), workers=2) as loader:
            for batch in loader.epoch():
                pids = [p.pid for p in loader._pool._executor._processes.values()]
                print(*pids, flush=True)
                time.sleep(60)
""")


def alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks into /proc')
@pytest.mark.parametrize('sign', ['SIGINT', 'SIGKILL'])
def test_workers_end_with_their_parent(tmp_path, sign):
    program = tmp_path / 'program.py'
    program.write_text(PROGRAM)
    parent = subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(alive, pids))
    if sign == 'SIGINT':
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    else:
        parent.kill()
    _, errors = parent.communicate(timeout=20)
    assert parent.returncode != 0
    # one traceback, the program's own; workers have nothing to say
    assert errors.count('Traceback') <= (sign == 'SIGINT')
    end = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, pids))


@pytest.mark.skipif(not hasattr(os, 'killpg'), reason='needs groups of processes')
def test_what_is_sent_to_the_whole_group_is_the_parent_s_affair(tmp_path):
    """As `timeout` and batch systems end a run: it saves, with its workers at work."""
    program = tmp_path / 'program.py'
    program.write_text("""
import signal, time
from ddetr_np.data.workers import Pool

def work(n):
    time.sleep(0.2)
    return n

if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: None)
    pool = Pool(work, 2)
    results = pool.map(range(6), 2)
    print(next(results), flush=True)
    print(list(results))
    pool.close()
""")
    parent = subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, text=True,
        start_new_session=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    )
    assert parent.stdout.readline() == '0\n'
    os.killpg(parent.pid, signal.SIGTERM)
    said, _ = parent.communicate(timeout=60)
    assert parent.returncode == 0
    assert said == '[1, 2, 3, 4, 5]\n'
