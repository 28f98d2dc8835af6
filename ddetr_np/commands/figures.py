from pathlib import Path

import click

from .data import need_folder, progress_bar
from .fields import (
    device_option,
    dtype_option,
    field_option,
    size_options,
    weights_option,
)

ENDINGS = 'png', 'svg'
SMOOTH = 1.0  # pixels, of the gradients' maps: the strides' chessboard would show

@click.command()
@click.argument('picture', type=click.Path(path_type=Path))
@weights_option
@click.option(
    '--detection',
    type=int,
    default=None,
    show_default=False,
    help='Look at this detection, the best being 0 [default: 0].',
)
@click.option('--query', type=int, help='Look at this query of the decoder.')
@click.option(
    '--at',
    type=float,
    nargs=2,
    metavar='X Y',
    help='Look at this place, pixels of the picture: the nearest token of the finest '
    'level, and the best box that holds it or is nearest.',
)
@click.option(
    '--threshold', default=0.5, help='Lower scores do not count as detections.'
)
@click.option(
    '--layer', default=-1, help='From 0; negative ones count from the last.'
)
@click.option('--head', type=int, help='Only the points of this head, from 0.')
@click.option(
    '--part',
    type=click.Choice(['encoder', 'decoder', 'both']),
    default='both',
    help='Whose sampling points are drawn.',
)
@click.option(
    '--zoom', default=1.0, help='How many times nearer, around the reference point.'
)
@click.option('--panels', is_flag=True, help='Also a panel for each level and head.')
@click.option(
    '--animation',
    is_flag=True,
    help='Also the layers one after another: GIF, and MP4 if ffmpeg is installed.',
)
@click.option(
    '--gradients/--no-gradients', default=True, help='Figure 5, which takes longest.'
)
@click.option(
    '--out',
    type=click.Path(path_type=Path),
    default=Path('.'),
    help='Folder for the figures.',
)
@size_options
@device_option
@dtype_option
@field_option
def figures(
    picture,
    weights,
    detection,
    query,
    at,
    threshold,
    layer,
    head,
    part,
    zoom,
    panels,
    animation,
    gradients,
    out,
    short,
    long,
    device,
    dtype,
    fields,
):
    """Draw the paper's Figures 5 and 6 for what was found in PICTURE.

    Figure 6: where a token of the encoder and a query of the decoder read, and how much
    each reading counts. Figure 5: which pixels a detection's box and score depend on.
    Each is written as PNG and as SVG, named after the picture.
    """
    from ..analysis.look import look, middle_token, token_at
    from ..data.pictures import read_picture
    from ..errors import InputError
    from ..evaluate.detection import check_numbers, class_name, detection_size
    from ..weights import load_model

    # what can be refused at once is, before the work begins
    if sum(option is not None for option in (detection, query, at)) > 1:
        raise InputError('choose one of --detection, --query and --at')
    check_numbers(threshold, 1, 1)
    pixels = read_picture(picture)
    model = load_model(weights, dtype=dtype, **fields)
    detection_size(model.config, short, long)
    parts = ('encoder', 'decoder') if part == 'both' else (part,)
    _check(model.config, pixels, parts, layer, head, zoom, at)
    need_folder(out)
    model.to(device)

    options = {'head': head, 'zoom': zoom}
    paths = []
    with progress_bar() as bar:
        task = bar.add_task('detecting', total=1 + len(parts))
        seen = look(model, pixels, short, long)
        i = _choose(seen, detection, query, at, threshold)
        q, label = int(seen.best.queries[i]), int(seen.best.labels[i])
        token = token_at(seen, *at) if at else middle_token(seen, i)
        for part in parts:
            bar.update(task, advance=1, description=f'sampling points, {part}')
            subject = (token,) if part == 'encoder' else (q, label)
            paths += draw_points(
                seen, part, subject, f'{out / picture.stem}-{part}', layer, options,
                panels, animation,
            )  # fmt: skip
        bar.advance(task)
        if gradients:
            paths += draw_gradients(seen, i, f'{out / picture.stem}-gradients', bar)
    name, score = class_name(model.config, label), seen.best.scores[i]
    click.echo(f'{name} {score:.3f}: query {q}, token {token}')
    for path in paths:
        click.echo(f'figure: {path}')


def _check(config, picture, parts, layer, head, zoom, at):
    from ..analysis.look import check_place, index_of
    from ..views.sampling import check_zoom

    for part in parts:
        n = {'encoder': config.encoder_layers, 'decoder': config.decoder_layers}[part]
        index_of(layer, n, f'{part} layer')
    if head is not None:
        index_of(head, config.M, 'head')
    check_zoom(zoom)
    if at:
        check_place(picture, *at)


def _choose(seen, detection, query, at, threshold):
    """The index in `seen.best` of what is to be looked at."""
    from ..analysis.look import pick_detection, pick_place, pick_query

    if query is not None:
        return pick_query(seen, query)
    if at:
        return pick_place(seen, *at)
    return pick_detection(seen, detection or 0, threshold)


def draw_points(
    seen, part, subject, base, layer=-1, options=None, panels=False, animation=False,
    endings=ENDINGS,
):  # fmt: skip
    """Figure 6 of one part; return the paths written, which begin with `base`."""
    from ..analysis.reads import all_layers, decoder_reads, encoder_reads
    from ..files import replacing
    from ..views.animation import has_ffmpeg, save_animation
    from ..views.sampling import draw_heads, draw_levels, draw_sampling

    q, *label = subject
    options = options or {'head': None, 'zoom': 1}
    if animation:
        frames = all_layers(seen, part, q, *label)
        reads = frames[layer]
    else:
        read = {'encoder': encoder_reads, 'decoder': decoder_reads}[part]
        reads = read(seen, q, layer, *label)
    paths = _save(base, draw_sampling(reads, **options).figure, endings)
    if panels:
        paths += _save(f'{base}-levels', draw_levels(reads, **options), endings)
        heads = draw_heads(reads, zoom=options['zoom'])
        paths += _save(f'{base}-heads', heads, endings)
    if animation:
        for ending in ('gif', 'mp4') if has_ffmpeg() else ('gif',):
            path = Path(f'{base}.{ending}')
            with replacing(path) as temporary:
                save_animation(temporary, frames, **options)
            paths.append(path)
    return paths


def draw_gradients(seen, i, base, bar=None, endings=ENDINGS):
    """Figure 5 of detection i of `seen.best`; return the paths written."""
    from ..analysis.gradient_norm import ITEMS, gradient_norms
    from ..views.gradient_norm import draw_gradient_norms

    progress = None
    if bar:
        task = bar.add_task('gradients', total=len(ITEMS))

        def progress(done):
            bar.update(task, completed=done)

    norms = gradient_norms(seen, i, smooth=SMOOTH, progress=progress)
    return _save(base, draw_gradient_norms(norms, seen), endings)


def _save(base, figure, endings):
    from ..files import replacing
    from ..views.sampling import save_figure

    paths = [Path(f'{base}.{ending}') for ending in endings]
    for path in paths:
        with replacing(path) as temporary:
            save_figure(temporary, figure)
    return paths
