"""The command `ddetr-np`.

Only click is imported here and at the top of `commands`, so that help is quick.
"""

import errno
import sys

import click

from . import __version__
from .commands.bench import bench
from .commands.complexity import complexity
from .commands.convert import convert
from .commands.data import data
from .commands.demo import demo
from .commands.detect import detect
from .commands.doctor import doctor
from .commands.evaluate import evaluate
from .commands.explore import explore
from .commands.figures import figures
from .commands.gradcheck import gradcheck
from .commands.train import train
from .errors import InputError


class Failure(click.ClickException):
    """One message on stderr, exit code 2."""

    exit_code = 2


class Commands(click.Group):
    """Turns what a user or their machine can cause into one message."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise Failure(str(error)) from error
        except MemoryError as error:
            raise Failure(
                'the memory is not enough; use smaller pictures (--short, --long), '
                f'a smaller --batch or model ({error})'
            ) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output has gone
                raise
            where = f'{error.filename}: ' if error.filename else ''
            raise Failure(f'{where}{error.strerror or error}') from error
        except KeyboardInterrupt:
            click.echo('interrupted', err=True)
            ctx.exit(130)


@click.group(
    cls=Commands,
    context_settings={'help_option_names': ['-h', '--help'], 'show_default': True},
)
@click.version_option(__version__, prog_name='ddetr-np')
def cli():
    """Deformable DETR in NumPy and CuPy: find objects in pictures."""


for command in (
    detect, train, evaluate, data, figures, explore, complexity, demo, convert,
    gradcheck, bench, doctor,
):
    cli.add_command(command)


def main():
    """Run the command line."""
    # a file name or sign that the terminal cannot show is no reason to stop
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='replace')
    cli(prog_name='ddetr-np')


if __name__ == '__main__':
    main()
