from pathlib import Path

import click

from .fields import device_option

SIZE = 384  # pixels of the scene's sides: the detector is fed it as it is
RADIUS = 24, 116  # of its figures, pixels
THRESHOLD = 0.4


@click.command()
@click.option(
    '--out',
    type=click.Path(path_type=Path),
    default=Path('.'),
    help='Folder for the drawn picture.',
)
@click.option(
    '--seed',
    type=int,
    default=None,
    show_default=False,
    help='Of the scene [default: another one each time].',
)
@device_option
def demo(out, seed, device):
    """Draw a new scene, find its figures, and save the picture with their boxes.

    Beside it: what the best detection looks at, the paper's Figures 5 and 6. The
    detector is `scenes`, which comes with the package: two-stage Deformable DETR,
    trained from random weights by `ddetr-np train`. Nothing is downloaded.
    """
    import secrets
    import time

    from rich.console import Console

    from ..analysis.look import look, middle_token
    from ..data.scenes import draw_scene
    from ..errors import InputError
    from ..evaluate.detection import detect
    from ..files import replacing
    from ..views.detections import save_detections
    from ..weights import load_model
    from .detect import print_detections
    from .figures import draw_gradients, draw_points

    if out.exists() and not out.is_dir():
        raise InputError(f'--out {out} is a file; expected a folder')
    if seed is None:
        seed = secrets.randbelow(10**6)
    if seed < 0:
        raise InputError(f'--seed is {seed}; expected 0 or more')
    out.mkdir(parents=True, exist_ok=True)
    scene = draw_scene(seed, SIZE, SIZE, figures=(5, 10), radius=RADIUS)
    model = load_model('scenes').to(device)
    start = time.perf_counter()
    found = detect(model, scene.picture, THRESHOLD)
    seconds = time.perf_counter() - start
    print_detections(Console(), f'scene {seed}', found, THRESHOLD)
    base = out / 'ddetr-np-demo'
    paths = [base.with_suffix('.png')]
    with replacing(paths[0]) as part:
        save_detections(part, scene.picture, found)
    seen = look(model, scene.picture)
    query, label = int(seen.best.queries[0]), int(seen.best.labels[0])
    for part, subject in (
        ('encoder', (middle_token(seen, 0),)), ('decoder', (query, label))
    ):
        paths += draw_points(seen, part, subject, f'{base}-{part}', endings=['png'])
    paths += draw_gradients(seen, 0, f'{base}-gradients', endings=['png'])
    right = count_found(scene, found)
    wrong = len(found) - right
    click.echo(
        f'{right} of {len(scene.labels)} figures found, {wrong} wrong '
        f'{"box" if wrong == 1 else "boxes"}, {seconds:.2f} s'
    )
    what = (
        'drawn picture', "where the encoder's middle token reads",
        'where the best detection reads', 'what the best detection depends on',
    )
    for name, path in zip(what, paths, strict=True):
        click.echo(f'{name}: {path}')


def count_found(scene, found):
    """Return how many figures have a box of their class, IoU 0.5 or more, each its own.

    Parameters
    ----------
    scene : Scene
    found : Detections
    """
    from pycocotools.mask import iou

    def as_xywh(boxes):
        return [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes.tolist()]

    free = set(range(len(scene.labels)))
    if not free or not len(found):
        return 0
    ious = iou(as_xywh(found.boxes), as_xywh(scene.boxes), [0] * len(free))
    for row, label in zip(ious, found.labels):  # best first
        mine = [i for i in free if row[i] >= 0.5 and scene.labels[i] == label]
        if mine:
            free.remove(max(mine, key=lambda i: row[i]))
    return len(scene.labels) - len(free)
