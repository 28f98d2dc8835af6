from pathlib import Path

import click

from .data import json_option, reading_options
from .fields import (
    device_option,
    dtype_option,
    field_option,
    half_option,
    size_options,
    weights_option,
)

PAGE = 12  # pictures on the page of misses


@click.command()
@weights_option
@click.option(
    '--data',
    'path',
    required=True,
    type=click.Path(path_type=Path),
    help='COCO file or folder, VOC folder or list.',
)
@reading_options
@click.option('--batch', default=1, help='Pictures through the model together.')
@size_options
@click.option('--skip-bad', is_flag=True, help='Leave out what cannot be read.')
@click.option(
    '--out',
    type=click.Path(path_type=Path),
    help='Folder for results.json, figures.json, curves.png and misses.png.',
)
@json_option('The figures')
@device_option
@half_option
@dtype_option
@field_option
def evaluate(
    weights,
    path,
    split,
    pictures,
    batch,
    short,
    long,
    skip_bad,
    out,
    json_path,
    device,
    dtype,
    fields,
):
    """Measure a checkpoint on a data set: COCO's twelve figures, and each class's.

    A model that knows its classes' names finds them in the data by name; one of COCO's
    91 classes takes the ids as they are.
    """
    from .. import threads
    from ..data.reading import read_dataset
    from ..evaluate import evaluate as evaluate_model
    from ..evaluate.detection import check_numbers, detection_size
    from ..evaluate.evaluation import check_classes, reading_for
    from ..weights import load_model
    from .data import need_folder, progress_bar, write_json

    check_numbers(0, 100, batch)
    model = load_model(weights, dtype=dtype, **fields)
    short, long = detection_size(model.config, short, long)
    model.to(device)
    threads.keep_freed_memory()
    dataset = read_dataset(
        path, split, pictures=pictures, skip_bad=skip_bad, **reading_for(model.config)
    )
    check_classes(model.config, dataset)
    if out:
        need_folder(out)
    with progress_bar() as bar:
        task = bar.add_task('evaluating', total=len(dataset))
        report = evaluate_model(
            model,
            dataset,
            short=short,
            long=long,
            batch=batch,
            skip_bad=skip_bad,
            progress=lambda done: bar.update(task, completed=done),
        )
    skipped = dataset.skipped + report.skipped
    if json_path:
        write_json(json_path, report.to_dict() | {'skipped': dict(skipped)})
    if json_path != '-':
        click.echo(str(report))
    for kind, n in skipped.items():
        click.echo(f'left out: {n} × {kind}', err=True)
    if out:
        _write(out, report, dataset)
        click.echo(f'results, figures, curves and misses: {out}', err=json_path == '-')


def _write(out, report, dataset):
    from ..files import replacing
    from ..views.curves import save_curves
    from ..views.sheet import draw_outcomes, make_sheet
    from .data import write_json

    write_json(out / 'results.json', report.results)
    write_json(out / 'figures.json', report.to_dict())
    with replacing(out / 'curves.png') as part:
        save_curves(part, report)
    images, captions = [], []
    of_picture = {}
    for outcome in report.outcomes:
        of_picture.setdefault(outcome.picture, []).append(outcome)
    for i in report.worst(PAGE):
        outcomes = of_picture[i]
        example = dataset[i]
        images.append(draw_outcomes(example.picture(), outcomes, dataset.names))
        captions.append(Path(example.name).name)
    if images:
        title = 'the worst misses: vermilion missed, orange false, green found'
        with replacing(out / 'misses.png') as part:
            make_sheet(images, captions, title, columns=3).save(part)
