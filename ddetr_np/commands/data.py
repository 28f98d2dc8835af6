import json
from pathlib import Path

import click

SAMPLES = 12
MANY = 0.2  # of the boxes: more off their pictures are no slips of the hand


@click.group()
def data():
    """Check, look at and draw data sets."""


def reading_options(command):
    """Add the options that say how a data set is read."""
    for option in (
        click.option('--split', help='Of a VOC folder: a list in ImageSets/Main.'),
        click.option(
            '--pictures',
            type=click.Path(path_type=Path),
            help="The pictures' folder of a COCO file, if not beside it.",
        ),
    ):
        command = option(command)
    return command


def json_option(what):
    """Return an option that writes JSON: to a file, or with no file to the screen."""
    return click.option(
        '--json',
        'json_path',
        is_flag=False,
        flag_value='-',
        metavar='[FILE]',
        help=f'{what} as JSON, to FILE or, if none is named, to the screen.',
    )


def write_json(path, content):
    """Write JSON to a file, or to the screen for '-'."""
    from ..files import replacing

    text = json.dumps(content, indent=1, ensure_ascii=False)
    if path == '-':
        click.echo(text)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(text + '\n', encoding='utf-8')


def progress_bar():
    """Return a rich progress bar on stderr, shown where somebody looks."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def need_folder(out):
    """Make the folder --out, or say why it cannot be one."""
    from ..errors import InputError

    if out.exists() and not out.is_dir():
        raise InputError(f'--out {out} is a file; expected a folder')
    out.mkdir(parents=True, exist_ok=True)


@data.command()
@click.argument('path', type=click.Path(path_type=Path))
@reading_options
@click.option('--classes', help='The class names that may occur: A,B,C.')
@click.option(
    '--decode/--no-decode', default=True, help='Read the pixels of all pictures too.'
)
@json_option('The problems')
@click.pass_context
def check(ctx, path, split, pictures, classes, decode, json_path):
    """List all that is wrong with the data set PATH.

    PATH is a COCO annotation file or its folder, a Pascal VOC folder or one of its
    lists, or a folder of pictures. Each problem is shown with its file and line or id;
    the exit code is 2 if there is any, else 0.
    """
    from collections import Counter

    from ..data.problems import KINDS
    from ..data.reading import check_dataset

    names = [name.strip() for name in classes.split(',')] if classes else None
    with progress_bar() as bar:
        task = bar.add_task('reading pictures', total=None)
        problems, dataset = check_dataset(
            path,
            split,
            pictures=pictures,
            names=names,
            decode=decode,
            progress=lambda example, n: bar.update(task, total=n, advance=1),
        )
    counts = Counter(problem.kind for problem in problems)
    if json_path:
        write_json(json_path, {
            'path': str(path),
            'problems': [p._asdict() | {'reading': KINDS[p.kind]} for p in problems],
            'counts': dict(counts),
            'pictures': len(dataset) if dataset else 0,
        })
    if json_path != '-':
        for problem in problems:
            click.echo(str(problem))
        _summary(dataset, counts)
    ctx.exit(2 if problems else 0)


def _summary(dataset, counts):
    from collections import Counter

    from ..data.problems import FATAL, KINDS, REFUSED

    if dataset is not None:
        n = [0] * len(dataset.names)
        for example in dataset.examples:
            for label in example.labels.tolist():
                n[label] += 1
        click.echo(f'{len(dataset)} usable pictures, {sum(n)} boxes')
        some = [f'{name} {k}' for name, k in zip(dataset.names, n) if k]
        if some:
            click.echo(f'classes: {", ".join(some)}')
    if not counts:
        click.echo('no problems')
        return
    click.echo(f'{sum(counts.values())} problems:')
    for kind, k in counts.most_common():
        click.echo(f'  {k} × {kind} (when read: {KINDS[kind]})')
    does = Counter()
    for kind, k in counts.items():
        does[KINDS[kind]] += k
    if does[FATAL]:
        click.echo('nothing can be read until it is mended')
    elif does[REFUSED]:
        click.echo(f'{does[REFUSED]} have to be mended, or left out by --skip-bad')
    else:
        click.echo('training can start as it is')
    off = counts['box reaches outside'] + counts['box outside']
    if dataset is not None and off > MANY * sum(n):
        click.echo(
            f'{off} boxes are not inside their pictures. COCO has x, y, width and '
            'height of a box, VOC has its corners, both in pixels: is this file as it '
            'should be?'
        )


@data.command()
@click.argument('path', type=click.Path(path_type=Path))
@reading_options
@click.option(
    '--out',
    type=click.Path(path_type=Path),
    required=True,
    help='Folder for samples.png.',
)
@click.option('--count', default=SAMPLES, help='How many pictures.')
@click.option('--seed', default=0, help='Of the choice.')
def show(path, split, pictures, out, count, seed):
    """Draw samples of the data set PATH with their boxes, on one page."""
    import numpy as np

    from ..data.reading import read_dataset
    from ..errors import InputError
    from ..files import replacing
    from ..views.sheet import draw_truth, make_sheet

    if count < 1 or seed < 0:
        raise InputError(
            f'--count is {count}, --seed {seed}; expected count ≥ 1, seed ≥ 0'
        )
    dataset = read_dataset(path, split, pictures=pictures, skip_bad=True)
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    images, captions, bad = [], [], []
    for i in order:
        if len(images) == count:
            break
        example = dataset[i]
        try:
            picture = example.picture()
        except InputError as error:
            bad.append(str(error))
            continue
        images.append(draw_truth(picture, example, dataset.names))
        H, W = example.size
        captions.append(f'{Path(example.name).name}, {W} × {H}')
    for reason in bad:
        click.echo(f'left out: {reason}', err=True)
    if not images:
        raise InputError(f'{path}: none of its pictures can be read')
    need_folder(out)
    file = out / 'samples.png'
    title = f'{len(images)} of {len(dataset)} pictures, {dataset.num_classes} classes'
    with replacing(file) as part:
        make_sheet(images, captions, title).save(part)
    for kind, n in dataset.skipped.items():
        click.echo(f'left out: {n} × {kind}', err=True)
    click.echo(f'drawn samples: {file}')


@data.command()
@click.option(
    '--out', type=click.Path(path_type=Path), required=True, help='Folder to write to.'
)
@click.option('--count', default=100, help='How many scenes.')
@click.option('--seed', default=0, help='The same seed gives the same scenes.')
@click.option('--height', default=192, help='Pixels.')
@click.option('--width', default=192, help='Pixels.')
@click.option(
    '--kind', type=click.Choice(['png', 'jpg']), default='png', help='Of the pictures.'
)
def scenes(out, count, seed, height, width, kind):
    """Write a data set of drawn scenes: annotations.json (COCO) and pictures/."""
    from ..data.scenes import write_scenes

    need_folder(out)
    with progress_bar() as bar:
        path = write_scenes(
            out, count, seed, height, width, kind=kind,
            progress=lambda numbers: bar.track(numbers, description='drawing'),
        )
    click.echo(f'{count} scenes: {path}')
