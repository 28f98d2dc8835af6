"""The option that names fields of the configuration."""

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
