import click


@click.command()
@click.argument('src')
@click.argument('dst')
def convert(src, dst):
    """Convert the checkpoint SRC to DST; DST's ending names the format.

    SRC is anything that detect's --weights takes. DST ends in .safetensors, .npz or
    .pth.
    """
    from ..weights import convert

    convert(src, dst)
    click.echo(f'written: {dst}')
