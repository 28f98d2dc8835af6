import signal
import threading
import time
from pathlib import Path

import click

WIDE = 110  # columns for each loss beside the bar
EVERY = 60  # seconds between lines where nobody sees the bar


def _parse(ctx, option, texts):
    from ..train.toml import parse_setting

    return [parse_setting(text) for text in texts]


def setting(*names, **more):
    """Return an option that stands for a setting; None where it is not given."""
    return click.option(*names, default=None, show_default=False, **more)


@click.command()
@click.option(
    '--config', type=click.Path(path_type=Path), help='TOML file of settings.'
)
@click.option(
    '--set',
    'pairs',
    multiple=True,
    metavar='NAME=VALUE',
    callback=_parse,
    help='Any setting, over those of the file: lr=1e-3, model.C=128 … Repeatable.',
)
@setting('--data', help="COCO file or folder, VOC folder or list; or 'scenes', drawn.")
@setting('--val', help='The same, to be judged on after each epoch.')
@setting(
    '--variant',
    help='single_scale, single_scale_dc5, multi_scale, refine or two_stage '
    '[default: multi_scale, or that of --weights].',
)
@setting('--weights', help='Start from this checkpoint, whatever its classes.')
@setting('--backbone-weights', help='Start from this ResNet.')
@click.option(
    '--out',
    required=True,
    type=click.Path(path_type=Path),
    help="The run's folder: settings, metrics, checkpoints, weights, curves.",
)
@click.option('--resume', is_flag=True, help='Go on with the run in --out.')
@setting('--epochs', type=int, help='[default: 50]')
@setting('--batch', type=int, help='Pictures through the model together [default: 2].')
@setting('--accumulate', type=int, help='Batches in a step [default: 16].')
@setting(
    '--processes', type=int,
    help='Batches of a step computed side by side, a process each [default: 1].',
)
@setting('--workers', type=int, help='Processes that prepare pictures [default: 2].')
@setting('--seed', type=int, help='[default: 0]')
@click.option('--skip-bad', is_flag=True, help='Leave out what cannot be read.')
@setting('--device', help='cpu, or a GPU: cuda:0, cuda:1 … [default: cpu]')
@click.pass_context
def train(ctx, config, pairs, out, resume, skip_bad, **options):
    """Train a detector on a data set.

    \b
    ddetr-np train --data scenes --out runs/first --config small.toml
    ddetr-np train --data VOC/ImageSets/Main/train.txt --weights r50.pth --out runs/own

    Ctrl-C saves; --resume goes on as if nothing had been. Another program may follow
    metrics.jsonl; model.safetensors is what detect and evaluate take.
    """  # noqa: D301
    from .. import threads
    from ..train.loop import Interrupted, stored_settings, train_model
    from ..train.settings import Settings
    from ..train.toml import read_toml

    layers = [read_toml(config)] if config else []
    layers += [{name: value} for name, value in pairs]
    layers.append({n: v for n, v in options.items() if v is not None})
    if skip_bad:
        layers.append({'skip_bad': True})
    settings = stored_settings(out) if resume else Settings()
    settings = settings.replace(**_merge(layers))
    threads.keep_freed_memory()
    stop = _Stop()
    with stop, Show(out) as show:
        try:
            _, report = train_model(
                settings, out, resume=resume, tell=show, stop=stop.asked
            )
        except Interrupted:
            show.end()
            click.echo(
                f'stopped; saved after step {show.step}. To go on:\n'
                f'  ddetr-np train --out {out} --resume',
                err=True,
            )
            ctx.exit(128 + stop.signal)
    if report:
        click.echo(str(report))
    click.echo(f'weights: {out / "model.safetensors"}')
    if show.best >= 0:
        click.echo(f'best: {out / "best.safetensors"}, AP {show.best:.3f}')


def _merge(layers):
    """One dict of flat names; later layers count."""
    flat = {}
    for layer in layers:
        for name, value in layer.items():
            inner = value if isinstance(value, dict) else None
            pairs = [(f'{name}.{k}', v) for k, v in inner.items()] if inner else []
            flat.update(pairs if inner is not None else [(name, value)])
    return flat


class _Stop:
    """Turns Ctrl-C and SIGTERM into a wish; the second one ends at once."""

    def __init__(self):
        self.signal = None
        self.before = {}

    def asked(self):
        return self.signal is not None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._wish)
        return self

    def _wish(self, number, frame):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        click.echo(
            'stopping after this step, then saving (again: at once, without)', err=True
        )

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Show:
    """Shows a run: a bar where somebody looks, lines where nobody does, and curves."""

    def __init__(self, out):
        self.out = out
        self.step = 0
        self.best = -1.0
        self.bar = self.task = None
        self.last = ''
        self.said = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.end()

    def end(self):
        """Take the bar away, draw the curves."""
        if self.bar is None:
            return
        self.bar.stop()
        self.bar = None
        self._draw()

    def __call__(self, kind, **facts):
        show = getattr(self, f'_on_{kind}', None)
        if show:
            show(**facts)

    def _say(self, text):
        if self.bar is not None and not self.bar.disable:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text, err=True)

    def _on_warning(self, text):
        self._say(f'warning: {text}')

    def _on_weights(self, path, kept):
        self._say(f'from {path}: kept {len(kept.kept)} tensors')
        for what, names in (('renewed', kept.renewed), ('unused', kept.unused)):
            for name in names:
                self._say(f'  {what}: {name}')

    def _on_start(self, state, settings, steps, data, val):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.step, self.best = state.step, state.best
        self.epochs, self.steps = settings.epochs, steps
        for kind, n in data.skipped.items():
            self._say(f'left out: {n} × {kind}')
        self._say(
            f'{data.origin}: {len(data)} pictures, {data.num_classes} classes; '
            + (f'judged on {len(val)}' if val is not None else 'judged on none (--val)')
        )
        goal = settings.epochs * steps
        if state.step == goal:
            self._say(f'all {goal} steps are done already')
        elif state.step:
            self._say(f'going on after step {state.step} of {goal}')
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn('epoch {task.fields[epoch]}'), BarColumn(),
            MofNCompleteColumn(), TextColumn('{task.fields[figures]}'),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal,
            speed_estimate_period=600,
        )
        self.task = self.bar.add_task(
            '', total=goal, completed=state.step, figures='', epoch=self._epoch(0)
        )
        self.bar.start()

    def _epoch(self, epoch):
        return f'{epoch + 1}/{self.epochs}'

    def _on_step(self, record):
        self.step = step = record['step']
        epoch = record['epoch'] - 1
        loss, *parts = (
            record[name] for name in ('loss', 'loss_ce', 'loss_bbox', 'loss_giou')
        )
        text = f'loss {loss:.3f}'
        if self.bar.console.width >= WIDE:
            text += ' · class {:.3f}, L1 {:.3f}, GIoU {:.3f}'.format(*parts)
        if self.best >= 0:
            text += f' · best AP {self.best:.3f}'
        self.bar.update(
            self.task, completed=step, figures=text, epoch=self._epoch(epoch)
        )
        self.last = f'loss {loss:.4f}'
        now = time.monotonic()
        if self.bar.disable and (step % self.steps == 0 or now - self.said > EVERY):
            self.said = now
            self._say(f'epoch {self._epoch(epoch)}: step {step}, {self.last}')

    def _on_evaluating(self, pictures):
        self.bar.update(self.task, figures=f'evaluating {pictures} pictures')

    def _on_eval(self, record, report, best):
        self.best, epoch = best, record['epoch']
        f = report.figures
        self._say(
            f'epoch {epoch}/{self.epochs}: AP {f["AP"]:.3f}, AP50 {f["AP50"]:.3f}, '
            f'{self.last}'
        )
        self._draw()

    def _on_skipped(self, counts):
        for kind, n in counts.items():
            self._say(f'left out: {n} × {kind}')

    def _draw(self):
        from ..files import replacing
        from ..train.log import read_metrics
        from ..views.training import save_training

        records = read_metrics(self.out)
        if records:
            with replacing(self.out / 'curves.png') as part:
                save_training(part, records)
