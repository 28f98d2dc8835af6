"""Contenders, each in a process of its own, run in turn.

In one process their pools of threads would fight for the cores: OpenMP's, ONNX
Runtime's and the BLAS's go on spinning for a while after their work, in the hope of
more. So each contender has a process with its usual settings. It sleeps while another
runs, and there is a pause before each run, in which the other's threads come to rest.
Compared are runs of the same round, so that a machine that slows down slows both.

On a machine with other work, `quiet` repeats runs that were disturbed (Linux only).
"""

import importlib.metadata
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

PAUSE = 0.5  # seconds; all of these pools go to sleep sooner
LEAST = 0.5  # seconds of a measurement: shorter tasks are repeated
TRIES = 20  # to have a run undisturbed
PATIENCE = 60.0  # seconds to wait for a quiet moment before a run
ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # the package beside this folder, installed or not
    sys.path.insert(0, str(ROOT))


class MissingError(Exception):
    """A peer is not installed."""


class Took(float):
    """Seconds that a task has measured by itself."""


class Run(NamedTuple):
    """What a run took.

    Parameters
    ----------
    seconds : float
        The mean, if a short task was repeated.
    others : float
        How many cores other processes were using meanwhile; NaN if unknown.
    """

    seconds: float
    others: float


class Contender:
    """A process that does tasks when asked.

    Parameters
    ----------
    name : str
    make : callable
        Returns {task: function}; it is called in the new process. What returns `Took`
        has measured by itself how many seconds its task takes.
    *args
        Of `make`.

    Raises
    ------
    MissingError
        What `make` imports is not installed.
    """

    def __init__(self, name, make, *args):
        self.name = name
        context = multiprocessing.get_context('spawn')
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, make, args), daemon=True
        )
        self._process.start()
        theirs.close()
        self._answer()

    def time(self, task):
        """Return the Run of a task."""
        before, own = busy(), busy(self._process.pid)
        start = time.perf_counter()
        seconds = self._ask('time', task)
        whole = time.perf_counter() - start
        others = (busy() - before) - (busy(self._process.pid) - own)
        return Run(seconds, others / whole)

    def get(self, task):
        """Return what a task returns."""
        return self._ask('get', task)

    def peak(self):
        """Return the most bytes that the process has held so far."""
        return self._ask('peak', None)

    def end(self):
        """End the process."""
        self._pipe.send(None)
        self._process.join()

    def _ask(self, *question):
        self._pipe.send(question)
        return self._answer()

    def _answer(self):
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            message = f'{self.name} ended by itself, exit code {code}'
            raise RuntimeError(message) from None
        if kind == 'missing':
            raise MissingError(value)
        if kind == 'error':
            raise RuntimeError(f'{self.name}:\n{value}')
        return value


def _serve(pipe, make, args):
    try:
        tasks = make(*args)
        pipe.send(('done', None))
        while True:
            question = pipe.recv()
            if question is None:
                return
            pipe.send(('done', _do(tasks, *question)))
    except ImportError as error:
        pipe.send(('missing', str(error)))
    except Exception:
        pipe.send(('error', traceback.format_exc()))


def _do(tasks, what, task):
    if what == 'peak':
        from ddetr_np.analysis.machine import peak

        return peak()
    if what == 'get':
        return tasks[task]()
    n, start, taken = 0, time.perf_counter(), 0.0
    while taken < LEAST:  # the mean of what is short
        if isinstance(took := tasks[task](), Took):
            return float(took)
        n, taken = n + 1, time.perf_counter() - start
    return taken / n


def busy(pid=None):
    """Return the seconds that all cores, or a process, have worked; NaN if unknown."""
    try:
        if pid is None:
            fields = Path('/proc/stat').read_text().split('\n')[0].split()[1:]
            idle = int(fields[3]) + int(fields[4])
            ticks = sum(map(int, fields[:8])) - idle
        else:
            # the name, in brackets, may hold blanks
            fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
            ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf('SC_CLK_TCK')
    except (OSError, ValueError, IndexError):
        return float('nan')


def enter(entries):
    """Start contenders; those that are not installed are named and left out.

    Parameters
    ----------
    entries : dict
        Name → (make, *args).

    Returns
    -------
    dict
        Name → Contender.
    """
    contenders = {}
    for name, entry in entries.items():
        try:
            contenders[name] = Contender(name, *entry)
        except MissingError as missing:
            print(f'{name} is left out: {missing}', flush=True)
    return contenders


def rounds(contenders, tasks, runs, quiet=None):
    """Run every contender's tasks in turn, after a first round that does not count.

    Parameters
    ----------
    contenders : dict
        Name → Contender.
    tasks : dict
        Name → its tasks.
    runs : int
    quiet : float or None
        Repeat runs while other processes use more than so many cores.

    Returns
    -------
    dict
        (name, task) → list of Run.
    """
    done = {(name, task): [] for name in contenders for task in tasks[name]}
    for i in range(runs + 1):
        for name, task in done:
            run = undisturbed(contenders[name], task, quiet if i else None)
            if i:
                done[name, task].append(run)
            which = f'run {i} of {runs}' if i else 'first run, not counted'
            tell(f'{which}: {name}, {task}', run)
    return done


def undisturbed(contender, task, quiet=None):
    """Return a Run during which others used at most `quiet` cores, or the best one."""
    best = None
    for _ in range(TRIES if quiet is not None else 1):
        time.sleep(PAUSE)
        if quiet is not None:
            wait(quiet)
        run = contender.time(task)
        if best is None or run.others < best.others:
            best = run
        if quiet is None or not run.others > quiet:  # unknown counts as undisturbed
            break
    return best


def tell(what, run):
    """Say on stderr what a run took."""
    line = f'  {what} {run.seconds:.3f} s; other work took {run.others:.2f} cores'
    print(line, file=sys.stderr, flush=True)


def wait(quiet):
    """Wait until other processes use at most so many cores, or patience ends."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        before = busy()
        time.sleep(PAUSE)
        if not busy() - before > quiet * PAUSE:
            return


def seconds(runs):
    """Return the seconds of Runs."""
    return [run.seconds for run in runs]


def add_options(parser, runs):
    """Add the options that all contests have."""
    parser.add_argument('--runs', type=int, default=runs, help='rounds that count')
    parser.add_argument('--threads', type=int, default=cores())
    parser.add_argument('--json', help='file for all figures')
    parser.add_argument(
        '--quiet',
        type=float,
        metavar='CORES',
        help='repeat runs while other processes use more than so many cores: 0.1',
    )


def ratio(ours, theirs):
    """Return (median, least, largest) of the ratios of Runs of the same rounds."""
    ratios = [a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def span(values, digits=3):
    """Return 'least–largest'."""
    return f'{min(values):.{digits}f}–{max(values):.{digits}f}'


def versions(*distributions):
    """Return {distribution: version} of those that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit():
    """Return the checkout's commit, with a + if files differ from it; or '?'."""
    command = ['git', 'describe', '--always', '--dirty=+']
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return '?'
    return done.stdout.strip() or '?'


def machine(*distributions):
    """Print what the figures are measured on, and return it."""
    from ddetr_np.analysis.machine import describe, load

    found = {**describe(), **versions(*distributions)}
    found['commit'] = commit()
    if load() is not None:
        found['load'] = f'{load():.2f} before the first run'
    for name, text in found.items():
        print(f'{name:22}{text}')
    print(flush=True)
    return found


def print_table(rows):
    """Print rows of text, the first one the head; all but the first column right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        first, *rest = (
            text.ljust(w) if i == 0 else text.rjust(w)
            for i, (text, w) in enumerate(zip(row, widths))
        )
        print('  '.join([first, *rest]).rstrip())
    print(flush=True)


def verdicts(results):
    """Print whether each target is met; return the list for JSON.

    Parameters
    ----------
    results : list of (str, float, float)
        What, the figure, and the most it should be.
    """
    found = []
    for what, figure, limit in results:
        met = figure <= limit
        words = 'met' if met else f'MISSED by {figure / limit - 1:.0%}'
        print(f'{what}: {figure:.2f}, target ≤ {limit}: {words}')
        found.append({'what': what, 'figure': figure, 'target': limit, 'met': met})
    return found


def save(path, figures):
    """Write figures to a JSON file, if there is a path."""
    if path:
        Path(path).write_text(json.dumps(figures, indent=1) + '\n', encoding='utf-8')


def cores():
    """Return the number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
