import contextlib
import json
from pathlib import Path

import click

from .fields import device_option, dtype_option, field_option

WIDTH = 120  # of the tables where there is no terminal
SHOWN = 0.005  # of the whole time: modules that take less are not listed


@click.command()
@click.option('--variant', default='multi_scale', help='Of the model.')
@click.option(
    '--size',
    nargs=2,
    type=click.IntRange(min=1),
    default=(800, 1066),
    metavar='H W',
    help='Of the pictures, in pixels.',
)
@click.option('--batch', type=click.IntRange(min=1), default=1, help='Pictures.')
@click.option(
    '--runs', type=click.IntRange(min=1), default=5, help='The median of so many.'
)
@click.option(
    '--threads',
    type=click.IntRange(min=1),
    help='Ours and the BLAS: all cores if not given.',
)
@device_option
@dtype_option
@field_option
@click.option('--plain', is_flag=True, help='Not the quicker twins of operations.')
@click.option('--profile', is_flag=True, help='Also the time by module.')
@click.option(
    '--json',
    'json_path',
    type=click.Path(path_type=Path, dir_okay=False),
    help='File for all figures.',
)
def bench(
    variant, size, batch, runs, threads, device, dtype, fields, plain, profile,
    json_path,
):
    """Measure how fast this machine runs a model, and how fast it could.

    The machine's own speeds are measured first, the best of some runs: matrix
    products in the model's shapes, and copying. A part's floor is the time that its
    matrix products alone take at that rate; of the sampling core and AdamW, which have
    none, the time to read and write their arrays once. Peak memory is that of the whole
    process, Python included; on a GPU, what CuPy holds of it.
    """
    from rich.console import Console
    from threadpoolctl import threadpool_limits

    from .. import backend
    from .. import threads as pool
    from ..analysis.bench import Bench
    from ..config import make_config
    from ..errors import InputError
    from ..nn.ddetr import DeformableDETR

    config = make_config(variant, **fields)
    if json_path is not None and not json_path.parent.is_dir():
        raise InputError(f'--json {json_path}: there is no folder {json_path.parent}')
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    pool.keep_freed_memory()  # as detect, evaluate and train do
    with contextlib.ExitStack() as stack:
        if threads is not None:
            stack.enter_context(pool.limit(threads))
            stack.enter_context(threadpool_limits(threads, 'blas'))
        if plain:
            stack.enter_context(backend.plain())
        model = DeformableDETR(config, dtype).to(device)
        measured = Bench(model, *size, batch, runs)
        figures = _measure(console, measured, profile)
    sizes = f'{batch} × {size[0]} × {size[1]}, {dtype}'
    sizes += f', {device}' * (device != 'cpu') + ', plain operations' * plain
    _print(console, f'{variant}, {sizes}', figures)
    if json_path is not None:
        figures['options'] = {
            'variant': variant, 'size': size, 'batch': batch, 'runs': runs,
            'device': device, 'dtype': dtype, 'plain': plain,
            'config': config.to_dict(),
        }  # fmt: skip
        _write(json_path, figures)


def _measure(console, measured, profile):
    """Return all figures, with a bar on the terminal meanwhile."""
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    from ..analysis.bench import ROW_COUNT, SHAPES, mean_rate, product_rates
    from ..analysis.machine import copy_rate, describe, load

    bar = console if console.is_terminal else Console(stderr=True)
    with Progress(
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        console=bar,
        transient=True,
        disable=not bar.is_terminal,
    ) as progress:
        total = 3 + SHAPES + ROW_COUNT + profile
        task = progress.add_task('counting', total=total)

        def done(what):
            progress.update(task, advance=1, description=what)

        device, dtype = measured.model.device, measured.model.dtype
        figures = {'machine': describe(device), 'load': load()}
        count = measured.count()
        done('products')
        shapes = count.shapes(kind='forward')
        rates = []
        for rate in product_rates(shapes, dtype, device=device):
            rates.append(rate)
            done('products')
        figures['products'] = rates
        figures['product_rate'] = mean_rate(rates)
        figures['copy_rate'] = copy_rate(device=device)
        done('parts')
        figures['rows'] = []
        for row in measured.rows(count):
            figures['rows'].append(row)
            done(row.name)
        # once more: what else the machine does may have changed
        rates = list(product_rates(shapes, dtype, device=device))
        figures['product_rate_after'] = mean_rate(rates)
        done('profile')
        figures['profile'] = measured.profile() if profile else None
    return figures


def _print(console, title, figures):
    from rich.table import Table
    from rich.text import Text

    for name, text in figures['machine'].items():
        click.echo(f'{name:12}{text}')
    if figures['load'] is not None:
        click.echo(f'{"load":12}{figures["load"]:.2f} at the start')
    product, copy = figures['product_rate'], figures['copy_rate']
    table = Table(title=Text('matrix products of the model', 'bold'))
    for name in ('rows', 'inner', 'columns', 'share of the work', 'GFLOP/s'):
        table.add_column(name, justify='right')
    for r in figures['products']:
        table.add_row(
            str(r.m), str(r.k), str(r.n), f'{r.share:.0%}', f'{r.flops / 1e9:.0f}'
        )
    console.print(table)
    click.echo(f'{"products":12}{product / 1e9:.0f} GFLOP/s')
    click.echo(f'{"copy":12}{copy / 1e9:.1f} GB/s, read and written')
    table = Table(title=Text(title, 'bold'))
    table.add_column('part', no_wrap=True)
    for name in ('products, GMAC', 'time, s', 'range', 'floor, s', 'ratio', 'peak, GB'):
        table.add_column(name, justify='right', no_wrap=True)
    for row in figures['rows']:
        floor = row.floor(product, copy)
        low, high = min(row.seconds), max(row.seconds)
        table.add_row(
            row.name,
            f'{row.macs / 1e9:.2f}' if row.macs else '–',
            f'{row.median:.4f}',
            f'{low:.4f}–{high:.4f}',
            f'{floor:.4f}',
            f'{row.median / floor:.2f}',
            f'{row.peak / 1e9:.2f}' if row.peak else '–',
        )
    console.print(table)
    change = figures['product_rate_after'] / product
    if abs(change - 1) > 0.1:
        click.echo(
            f'Products ran at {change:.0%} of that rate afterwards: the machine does '
            'other work, or its clock changes. Ratios are that uncertain.'
        )
    for name, spent in (figures['profile'] or {}).items():
        console.print(_profile_table(name, spent))


def _profile_table(name, spent):
    from rich.table import Table
    from rich.text import Text

    from ..analysis.timing import Spent, alike

    whole = sum(s.own for s in spent.values())
    table = Table(title=Text(f'{name}: {whole:.3f} s by module', 'bold'))
    table.add_column('module', overflow='fold')
    for column in ('pass', 'calls', 'in all, s', 'own, s', 'own'):
        table.add_column(column, justify='right', no_wrap=True)
    rest = Spent()
    rows = sorted(alike(spent).items(), key=lambda item: -item[1].own)
    for (module, kind), s in rows:
        if s.own < SHOWN * whole:
            rest.own += s.own
        else:
            numbers = f'{s.calls}', f'{s.total:.4f}', f'{s.own:.4f}'
            share = f'{s.own / whole:.1%}'
            table.add_row(Text(module or 'the whole model'), kind, *numbers, share)
    share = f'{rest.own / whole:.1%}'
    table.add_row('what takes less', '', '', '', f'{rest.own:.4f}', share)
    return table


def _write(path, figures):
    from dataclasses import asdict

    from ..files import replacing

    product, copy = figures['product_rate'], figures['copy_rate']
    plain = dict(figures)
    plain['products'] = [r._asdict() for r in figures['products']]
    plain['rows'] = [
        {**r._asdict(), 'median': r.median, 'floor': r.floor(product, copy)}
        for r in figures['rows']
    ]
    if figures['profile']:
        plain['profile'] = {
            name: [
                {'module': module, 'pass': kind, **asdict(s)}
                for (module, kind), s in spent.items()
            ]
            for name, spent in figures['profile'].items()
        }
    with replacing(path) as part:
        part.write_text(json.dumps(plain, indent=1) + '\n', encoding='utf-8')
