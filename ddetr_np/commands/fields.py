"""Options that several commands share."""

import ast

import click


def _parse(ctx, option, settings):
    """('M=4', 'init=paper') → {'M': 4, 'init': 'paper'}."""
    fields = {}
    for setting in settings:
        name, equals, value = setting.partition('=')
        if not equals:
            raise click.BadParameter(f'{setting!r}; expected NAME=VALUE, e.g. M=4')
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # a word
            fields[name] = value
    return fields


field_option = click.option(
    '--set',
    'fields',
    multiple=True,
    metavar='NAME=VALUE',
    callback=_parse,
    help='A field of the configuration that the weights do not tell, e.g. '
    'dilation=True for a bare state dict of DC5. Repeatable.',
)

weights_option = click.option(
    '--weights',
    required=True,
    help='scenes or bccd, which come with the package; a file, a folder, or a name on '
    'the Hugging Face hub.',
)


def _need(ctx, option, device):
    if device != 'cpu':  # to import NumPy for nothing would be slow
        from ..backend import need_device

        need_device(device)
    return device


device_option = click.option(
    '--device',
    default='cpu',
    callback=_need,
    is_eager=True,  # before --half asks for it
    help='cpu, or a GPU: cuda:0, cuda:1 …',
)


def _halve(ctx, option, half):
    if not half:
        return
    if ctx.params['device'] == 'cpu':
        raise click.UsageError(
            '--half is for a GPU: a CPU has no products of half precision; add '
            '--device cuda:0'
        )
    if ctx.params.get('dtype') == 'float64':
        raise click.UsageError('--half and --dtype float64 exclude each other')
    from ..backend import mixed

    ctx.with_resource(mixed())


half_option = click.option(
    '--half',
    is_flag=True,
    expose_value=False,
    callback=_halve,
    help='Half-precision values and products, on a GPU.',
)

dtype_option = click.option(
    '--dtype',
    type=click.Choice(['float32', 'float64']),
    default='float32',
    is_eager=True,
    help='Of weights and pictures.',
)


def size_options(command):
    """Add --short and --long, None where they are not given."""
    for name, what in (
        ('--long', 'At most so many pixels of the long side'),
        ('--short', 'Pixels of the resized short side'),
    ):
        option = click.option(
            name, type=int, default=None, show_default=False,
            help=f"{what} [default: the model's].",
        )
        command = option(command)
    return command
