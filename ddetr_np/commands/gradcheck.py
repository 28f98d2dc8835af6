import contextlib

import click

from .fields import device_option, field_option

UNDECIDED = 3  # exit code: nothing is wrong, but not all could be judged
COLOURS = {'ok': 'green', 'fail': 'bold red', 'kink': 'yellow'}
WIDTH = 120  # of the table where there is no terminal


@click.command()
@click.option(
    '--variant',
    help='Structure to check: single_scale, single_scale_dc5, multi_scale, refine or '
    'two_stage. Of --model all five if not given.',
)
@click.option(
    '--full',
    is_flag=True,
    help='The published sizes, not small ones; with --model it takes 1.5 GB and some '
    'ten minutes for each table.',
)
@field_option
@click.option(
    '--weights',
    help='Check the whole detector at this checkpoint, in float64: a file, a folder, '
    'or a name on the Hugging Face hub.',
)
@click.option(
    '--op',
    'names',
    multiple=True,
    metavar='NAME',
    help='Only this operation, or all of a module: softmax, norm, conv.conv2d. '
    'Repeatable.',
)
@click.option('--model', is_flag=True, help='The whole detector, end to end.')
@click.option(
    '--block/--no-block',
    default=None,
    help='Of the detector only the gradient that stops where the released code stops '
    'it, or only the true derivative; both if not given.',
    show_default=False,
)
@click.option('--train', is_flag=True, help='The detector as in training: dropout on.')
@click.option('--tol', default=1e-6, help='Largest relative error that is right.')
@click.option(
    '--seed',
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help='Of inputs, weights and directions.',
)
@click.option('--plain', is_flag=True, help='Not the quicker twins of operations.')
@device_option
@click.pass_context
def gradcheck(
    ctx, variant, full, fields, weights, names, model, block, train, tol, seed, plain,
    device,
):
    """Check gradients by finite differences, in float64.

    Every operation with a backward pass is checked; with --model or --weights the whole
    detector is, from the loss to the pictures. The forward pass moves along a random
    direction of one argument, or of all parameters of a part: that slope is the numeric
    column, the backward pass's the analytic one.

    Exit code 0: all agree. 1: a check fails. 2: something given cannot be used. 3: none
    fails, but a verdict is 'kink': the point lies where the function is not smooth and
    proves nothing; another --seed chooses another.
    """
    from rich.console import Console

    from .. import backend
    from ..errors import InputError

    if not 0 < tol < 1:
        raise InputError(f'--tol is {tol}; expected between 0 and 1, e.g. 1e-6')
    whole = model or weights is not None
    if whole and names:
        raise InputError('--op checks operations, --model and --weights the detector')
    if not whole and (train or block is not None):
        raise InputError('--train, --block and --no-block need --model or --weights')
    if weights is not None and (variant or full):
        raise InputError('--weights says the variant and sizes; leave --variant')

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    if whole:
        models = _models(variant, full, fields, weights, seed, device)
        rounds = _of_models(models, block, train, tol, seed)
    else:
        rounds = _of_operations(variant, full, fields, names, tol, seed, device)
    with backend.plain() if plain else contextlib.nullcontext():
        ctx.exit(_report(console, rounds, tol))


def _of_operations(variant, full, fields, names, tol, seed, device):
    """Yield (what is checked, its number of checks or None, checks): here once."""
    from ..testing import SMALL, check_operations

    config = SMALL.replace(**fields)
    sizes = 'small sizes'
    if variant or full:
        config = _config(variant or 'multi_scale', full, fields, SMALL.to_dict())
        sizes = f'sizes of {variant or "multi_scale"}' + ', published' * full
    names = _operations(names)
    noun = 'operation' if len(names) == 1 else 'operations'
    title = f'{len(names)} {noun}, {sizes}: {_sizes(config)}'
    yield title, None, check_operations(config, names, seed, tol, device)


def _operations(wanted):
    """Return the names of CASES that the words of --op mean."""
    import difflib

    from ..errors import InputError
    from ..testing import CASES

    chosen = []
    for word in wanted or CASES:
        word = word.removesuffix('_backward')
        found = [n for n in CASES if word in (n, *n.split('.'))]
        if not found:
            words = {w for n in CASES for w in (n, *n.split('.'))}
            near = difflib.get_close_matches(word, sorted(words), 3, 0.5)
            near = near or sorted(CASES)
            raise InputError(
                f'--op {word}: no operation with a backward pass is called that; did '
                f'you mean {" or ".join(near)}?'
            )
        chosen += [n for n in found if n not in chosen]
    return chosen


def _models(variant, full, fields, weights, seed, device):
    """Yield (model, what it is), float64, every tensor random unless a checkpoint's."""
    from ..config import VARIANTS
    from ..nn.ddetr import DeformableDETR
    from ..testing_model import SMALL, randomise

    if weights is not None:
        from ..weights import load_model

        model = load_model(weights, dtype='float64', **fields)
        yield model.to(device), weights
        return
    wanted = [variant] if variant else VARIANTS
    # all are made first: a field that none of them can have is refused at once
    configs = {name: _config(name, full, fields, SMALL) for name in wanted}
    for name, config in configs.items():
        model = DeformableDETR(config, 'float64', seed)
        size = 'published' if full else 'small'
        yield randomise(model, seed).to(device), f'{name}, {size} sizes'


def _of_models(models, block, train, tol, seed):
    """Yield (what is checked, its number of checks, checks) for each pass."""
    from ..testing_model import check_model, parts, random_batch

    for model, name in models:
        config = model.config
        million = sum(p.data.size for p in model.params()) / 1e6
        title = f'{name}: {million:.3g} million parameters, {_sizes(config)}'
        batch = random_batch(config.num_classes, seed=seed)
        blocks = (block,)
        if block is None:  # without boxes that are handed on, nothing is blocked
            blocks = (True, False) if config.refine or config.two_stage else (False,)
        for stop in blocks:
            checks = check_model(
                model, *batch, block=stop, train=train, seed=seed, tol=tol
            )
            yield title, 1 + len(parts(model)), checks


def _config(variant, full, fields, small):
    from ..config import VARIANTS, make_config

    if not full and variant in VARIANTS:
        structure = ('L', 'dilation', 'refine', 'two_stage')
        own = {name: getattr(VARIANTS[variant], name) for name in structure}
        fields = {**small, **own, **fields}
    return make_config(variant, **fields)


def _sizes(config):
    names = ('C', 'M', 'L', 'K', 'Nq', 'ffn')
    return ', '.join(f'{name} = {getattr(config, name)}' for name in names)


def _report(console, rounds, tol):
    """Run the checks, print a table of each round and the sum; return the exit code."""
    from collections import Counter

    count, worst = Counter(), 0.0
    for title, total, checks in rounds:
        rows = []
        try:
            for check in _with_progress(console, title, total, checks):
                rows.append(check)
                count[check.verdict] += 1
                if check.verdict == 'ok':
                    worst = max(worst, check.error)
        finally:  # what has been found out is shown even when interrupted
            if rows:
                _print_table(console, title, rows)
    click.echo(
        f'{count["ok"]} of {count.total()} agree within {tol:g} (largest error '
        f'{worst:.1e}); {count["fail"]} fail; {count["kink"]} undecided'
    )
    if count['kink']:
        click.echo(
            "'kink': the point lies where the function is not smooth (the zero of a "
            'ReLU, a sample\non the centre of a pixel, a tie of a maximum) and proves '
            'nothing. Try another --seed.\nInitial weights have all samples on pixel '
            'centres: of those no seed helps.'
        )
    if count['fail']:
        return 1
    return UNDECIDED if count['kink'] else 0


def _with_progress(console, title, total, checks):
    """Yield the checks, with a bar on the terminal while they run."""
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    bar = console if console.is_terminal else Console(stderr=True)
    with Progress(
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        console=bar,
        transient=True,
        disable=not bar.is_terminal,
    ) as progress:
        task = progress.add_task(title.partition(':')[0], total=total)
        for check in checks:
            yield check
            progress.advance(task)


def _print_table(console, title, checks):
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, 'bold'), title_justify='left')
    table.add_column('operation or module', overflow='fold')
    table.add_column('by', overflow='fold')
    for name in ('numeric', 'analytic', 'relative error'):
        table.add_column(name, justify='right', no_wrap=True)
    table.add_column('verdict')
    for c in checks:
        numbers = f'{c.numeric:.8g}', f'{c.analytic:.8g}', f'{c.error:.1e}'
        verdict = Text(c.verdict, COLOURS[c.verdict])
        table.add_row(Text(c.name), Text(c.argument), *numbers, verdict)
    console.print(table)
