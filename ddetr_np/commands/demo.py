from pathlib import Path

import click

SHOWN = 12  # detections; more would only crowd the picture


@click.command()
@click.option(
    '--out',
    type=click.Path(path_type=Path),
    default=Path('.'),
    help='Folder for the drawn picture.',
)
@click.option('--seed', default=2, help='Of the picture and of the random weights.')
def demo(out, seed):
    """Draw a picture, run the two-stage model on it, and save what it finds.

    The package has no trained weights yet: the model runs whole, but with random
    weights, so what it finds means nothing.
    """
    import time

    from rich.console import Console

    from ..data.shapes import draw_shapes
    from ..errors import InputError
    from ..evaluate.detection import detect
    from ..files import replacing
    from ..nn.ddetr import build_model
    from ..views.detections import save_detections
    from .detect import print_detections

    if out.exists() and not out.is_dir():
        raise InputError(f'--out {out} is a file; expected a folder')
    if seed < 0:
        raise InputError(f'--seed is {seed}; expected 0 or more')
    out.mkdir(parents=True, exist_ok=True)
    picture = draw_shapes(seed)
    model = build_model('two_stage', seed=seed)
    start = time.perf_counter()
    found = detect(model, picture, threshold=0, top=SHOWN, short=480)
    seconds = time.perf_counter() - start
    print_detections(Console(), 'a picture of shapes', found)
    path = out / 'ddetr-np-demo.png'
    with replacing(path) as part:
        save_detections(part, picture, found)
    click.echo(f'two-stage Deformable DETR, ResNet-50: {seconds:.1f} s')
    click.echo(
        'The weights are UNTRAINED (random): boxes, classes and scores mean nothing.\n'
        'With a checkpoint: ddetr-np detect PICTURE --weights CHECKPOINT'
    )
    click.echo(f'drawn picture: {path}')
