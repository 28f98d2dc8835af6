import json
from pathlib import Path

import click

from .fields import (
    device_option,
    dtype_option,
    field_option,
    half_option,
    size_options,
    weights_option,
)


@click.command()
@click.argument('pictures', nargs=-1, required=True)
@weights_option
@click.option(
    '--threshold', default=0.5, help='Leave out lower scores; 0 shows all --top.'
)
@click.option('--top', default=100, help='At most so many detections in a picture.')
@click.option('--batch', default=1, help='Pictures through the model together.')
@size_options
@click.option(
    '--out', type=click.Path(path_type=Path), help='Folder for the drawn pictures.'
)
@click.option(
    '--json',
    'json_path',
    type=click.Path(path_type=Path),
    help='File for the results in COCO format.',
)
@device_option
@half_option
@dtype_option
@field_option
@click.pass_context
def detect(
    ctx,
    pictures,
    weights,
    threshold,
    top,
    batch,
    short,
    long,
    out,
    json_path,
    device,
    dtype,
    fields,
):
    """Find objects in PICTURES: files, folders, or quoted globs like 'a/**/*.jpg'.

    A folder stands for the pictures directly in it. A table is printed for each
    picture; --out draws the boxes, --json writes them in COCO's results format
    (image_id is the number if the file's name is one, else the name). A picture that
    cannot be read does not stop the others: it is reported at the end, and the exit
    code is 2.
    """
    from rich.console import Console
    from rich.progress import Progress

    from .. import threads
    from ..errors import InputError
    from ..evaluate.detection import check_numbers, detection_size
    from ..weights import load_model
    from .inputs import drawn_paths, find_pictures, image_ids

    # everything that can be refused at once is, before the work begins
    check_numbers(threshold, top, batch)
    files, problems = find_pictures(pictures)
    if not files:
        raise InputError('\n'.join(f'{name!r}: {reason}' for name, reason in problems))
    paths = _folder_of_drawings(out, files, drawn_paths)
    _file_of_results(json_path)
    model = load_model(weights, dtype=dtype, **fields)
    short, long = detection_size(model.config, short, long)
    model.to(device)
    threads.keep_freed_memory()

    console = Console()
    # one console must draw both bar and tables, or they would garble each other
    bar_console = console if console.is_terminal else Console(stderr=True)
    results = []
    jobs = list(zip(files, paths, image_ids(files)))
    options = {'threshold': threshold, 'top': top, 'batch': batch}
    options |= {'short': short, 'long': long}
    with Progress(
        console=bar_console, transient=True, disable=not bar_console.is_terminal
    ) as progress:
        task = progress.add_task('detecting', total=len(jobs))
        for i in range(0, len(jobs), batch):
            some = jobs[i : i + batch]
            found, failed = _detect_some(model, some, options)
            problems += failed
            for (file, path, image_id), picture, detections in found:
                print_detections(console, file, detections, threshold)
                results += detections.to_coco(image_id)
                if path:
                    _save(path, picture, detections)
            progress.advance(task, len(some))
    if json_path:
        _write_json(json_path, results)
    for what, path in (('drawn pictures', out), ('results', json_path)):
        if path:
            click.echo(f'{what}: {path}')
    if problems:
        click.echo(f'{len(problems)} could not be used:', err=True)
        for name, reason in problems:
            # most reasons begin with the file's name already
            start = '' if name and name in reason else f'{name!r}: '
            click.echo(f'  {start}{reason}', err=True)
        ctx.exit(2)


def _folder_of_drawings(out, files, drawn_paths):
    from ..errors import InputError

    if out is None:
        return [None] * len(files)
    paths = drawn_paths(files, out)
    if out.exists() and not out.is_dir():
        raise InputError(f'--out {out} is a file; expected a folder')
    out.mkdir(parents=True, exist_ok=True)
    return paths


def _file_of_results(path):
    from ..errors import InputError

    if path is None:
        return
    if path.is_dir():
        raise InputError(f'--json {path} is a folder; expected a file')
    path.parent.mkdir(parents=True, exist_ok=True)


def _detect_some(model, jobs, options):
    """Return [(job, picture, Detections)] and [(name, why not)]; none loses another."""
    from ..data.pictures import read_picture
    from ..errors import InputError
    from ..evaluate.detection import detect

    read, failed = [], []
    for job in jobs:
        try:
            read.append((job, read_picture(job[0])))
        except InputError as error:
            failed.append((str(job[0]), str(error)))
    try:
        found = detect(model, [picture for _, picture in read], **options)
    except MemoryError:
        reason = 'the memory is not enough; use a smaller --batch or --short'
        return [], failed + [(str(job[0]), reason) for job, _ in read]
    return [(*pair, d) for pair, d in zip(read, found)], failed


def print_detections(console, title, detections, threshold=0):
    """Print a table of one picture's detections on a rich console."""
    from rich.table import Table
    from rich.text import Text

    H, W = detections.size
    # file and class names are Text: brackets in them are no markup
    console.print(Text(f'{title} ({W} × {H})', 'bold'), soft_wrap=True)
    if not len(detections):
        console.print(f'nothing scores {threshold:g} or more; see --threshold\n')
        return
    table = Table()
    table.add_column('score', justify='right')
    table.add_column('class')
    for edge in ('x0', 'y0', 'x1', 'y1'):
        table.add_column(edge, justify='right')
    for d in detections:
        edges = [f'{edge:.1f}' for edge in d.box]
        table.add_row(f'{d.score:.3f}', Text(d.name), *edges)
    console.print(table)


def _save(path, picture, detections):
    from ..files import replacing
    from ..views.detections import save_detections

    with replacing(path) as part:
        save_detections(part, picture, detections)


def _write_json(path, results):
    from ..files import replacing

    with replacing(path) as part:
        part.write_text(json.dumps(results, indent=1), encoding='utf-8')
