from pathlib import Path

import click

from .fields import field_option


@click.command()
@click.argument('src')
@click.argument('dst', type=click.Path(path_type=Path))
@click.option('--half', is_flag=True, help='Matrices and kernels in half precision.')
@field_option
def convert(src, dst, half, fields):
    """Convert the checkpoint SRC to DST, under the published names.

    SRC is anything that detect's --weights takes. The ending of DST says its format:
    .safetensors, .npz, or PyTorch's .pth, .pt, .bin.
    """
    from ..weights import convert

    config = convert(src, dst, half, **fields)
    kind = config.variant or 'another variant'
    click.echo(f'{kind}, {config.backbone}, {config.num_classes} classes')
    click.echo(f'written: {dst}')
