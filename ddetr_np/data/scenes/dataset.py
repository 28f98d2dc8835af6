"""Data sets of drawn scenes: on the fly, or written to files."""

import json
from collections import Counter
from pathlib import Path

from PIL import Image

from ...errors import InputError
from ...files import replacing
from ..dataset import Dataset, make_example
from .draw import draw_scene
from .figures import NAMES


class Scenes(Dataset):
    """Scenes that are drawn when they are asked for.

    Parameters
    ----------
    count : int
        At least 1.
    seed : int
        Scene i is a function of (seed, i) alone.
    H, W : int
        Pixels.
    fresh : bool
        Draw other scenes in each epoch, so that nothing is seen twice.
    **settings
        Further arguments of `draw_scene`.

    Raises
    ------
    InputError
        `count` is less than 1, or `seed` less than 0.
    """

    def __init__(self, count, seed=0, H=192, W=192, *, fresh=False, **settings):
        if count < 1 or seed < 0:
            raise InputError(
                f'count is {count} and seed {seed}; expected count ≥ 1, seed ≥ 0'
            )
        self.count, self.seed, self.size, self.fresh = count, seed, (H, W), fresh
        self.settings = settings
        self.names, self.category_ids = NAMES, tuple(range(len(NAMES)))
        self.origin, self.skipped = f'scenes of seed {seed}', Counter()

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.at(i)

    def at(self, i, epoch=0):
        """Return scene i of an epoch.

        Parameters
        ----------
        i : int
            From 0.
        epoch : int
            From 0; without `fresh` all are alike.

        Returns
        -------
        Example
            With id i.

        Raises
        ------
        IndexError
            There are fewer scenes.
        """
        if not 0 <= i < self.count:
            raise IndexError(i)
        stream = (self.seed, i, epoch if self.fresh else 0)
        scene = draw_scene(stream, *self.size, **self.settings)
        return make_example(
            i, scene.picture, self.size, scene.boxes, scene.labels, None, scene.areas
        )


def write_scenes(folder, count, seed=0, H=192, W=192, *, kind='png', progress=iter):
    """Write scenes as COCO JSON and pictures.

    Parameters
    ----------
    folder : path
        Made if it is not there; gets `annotations.json` and `pictures/`.
    count, seed, H, W
        As for `Scenes`.
    kind : {'png', 'jpg'}
    progress : callable, optional
        Wraps the range of scenes, as a progress bar does.

    Returns
    -------
    Path
        Of the annotations.

    Raises
    ------
    InputError
        `kind`, `count` or `seed` cannot be used.
    """
    if kind not in ('png', 'jpg'):
        raise InputError(f"kind is {kind!r}; expected 'png' or 'jpg'")
    scenes = Scenes(count, seed, H, W)
    folder = Path(folder)
    (folder / 'pictures').mkdir(parents=True, exist_ok=True)
    examples = []
    for i in progress(range(count)):
        example = scenes[i]
        path = folder / 'pictures' / f'{i:06}.{kind}'
        with replacing(path) as part:
            Image.fromarray(example.picture()).save(part, quality=92)
        examples.append(make_example(
            i, path, example.size, example.annotated, example.labels, None,
            example.areas,
        ))
    written = Dataset(examples, NAMES).to_coco()
    written['info'] = {'description': f'drawn scenes, seed {seed}', 'seed': seed}
    path = folder / 'annotations.json'
    with replacing(path) as part:
        part.write_text(json.dumps(written), encoding='utf-8')
    return path
