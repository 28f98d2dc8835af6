from pathlib import Path

import click

from .fields import device_option, field_option, size_options, weights_option


@click.command()
@click.argument('picture', type=click.Path(path_type=Path))
@weights_option
@click.option(
    '--out',
    type=click.Path(path_type=Path),
    default=None,
    show_default=False,
    help='The page [default: PICTURE-explorer.html, here].',
)
@click.option('--threshold', default=0.3, help='Leave out lower scores.')
@click.option(
    '--maps',
    default=1,
    help='Detections that get maps of Figure 5; each takes five backward passes.',
)
@size_options
@device_option
@field_option
def explore(picture, weights, out, threshold, maps, short, long, device, fields):
    """Write a page to walk through what a model looks at in PICTURE.

    One HTML file without server or network: move over the picture to see where that
    encoder token looks, click a detection for its decoder points, drag a reference
    point, show the gradient norms of Figure 5.
    """
    from ..analysis.gradient_norm import gradient_norms
    from ..analysis.look import look
    from ..errors import InputError
    from ..evaluate.detection import check_numbers
    from ..views.explorer import pack, save_page
    from ..weights import load_model
    from .data import progress_bar
    from .figures import SMOOTH

    check_numbers(threshold, 1, 1)
    if maps < 0:
        raise InputError(f'--maps is {maps}; expected 0 (none) or more')
    out = out or Path(f'{picture.stem}-explorer.html')
    if out.is_dir():
        raise InputError(f'--out {out} is a folder; expected a file')
    out.parent.mkdir(parents=True, exist_ok=True)
    model = load_model(weights, **fields).to(device)
    config = model.config
    with progress_bar() as bar:
        layers = config.encoder_layers + config.decoder_layers
        task = bar.add_task('looking', total=1 + layers)
        seen = look(model, picture, short, long)
        bar.update(task, completed=1)
        n = min(maps, int((seen.best.scores >= threshold).sum()))
        bar.update(task, total=1 + layers + n)
        norms = []
        for i in range(n):
            norms.append(gradient_norms(seen, i, smooth=SMOOTH))
            bar.advance(task)
        packed = pack(
            seen, threshold, norms,
            progress=lambda done: bar.update(task, completed=1 + n + done),
        )
        save_page(out, packed)
    click.echo(f'{len(packed["detections"])} detections; page: {out}')
