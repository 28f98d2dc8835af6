"""Checkpoints that are whole at any moment, whatever ends the process.

One safetensors file holds everything: the weights under their published names, so that
`load_model` reads it, and what only training needs under `training/`. A new file is
written beside the old one, brought to the disk, and takes its place in one step; the
old one stays as the previous checkpoint.
"""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import safetensors

from ..errors import InputError, NotFiniteError
from ..files import replacing
from ..weights.files import TRAINING
from ..weights.write import write_safetensors

NAME, PREVIOUS = 'checkpoint.safetensors', 'previous.safetensors'
PREFIX = TRAINING  # not read as weights
FORMAT = 1


def write_checkpoint(folder, weights, config, tensors, facts):
    """Write a checkpoint; what was the last one becomes the previous one.

    Parameters
    ----------
    folder : path
        The run's; it exists.
    weights : dict of str → array
        Published names and layouts.
    config : dict
        `Config.to_dict()`.
    tensors : dict of str → {name: array}
        What else there is, by kind: 'exp_avg', 'ema' …
    facts : dict
        The rest, as JSON can hold it.

    Raises
    ------
    NotFiniteError
        A tensor is not finite; it is named, and nothing was written.
    """
    folder = Path(folder)
    everything = dict(weights)
    for kind, named in tensors.items():
        everything |= {f'{PREFIX}{kind}/{name}': a for name, a in named.items()}
    for name, array in everything.items():
        if not np.isfinite(array).all():
            raise NotFiniteError(f'{name} is not finite: no checkpoint was written')
    metadata = {
        'format': 'pt',
        'config': json.dumps(config),
        'training': json.dumps({'format': FORMAT, **facts}),
    }
    with replacing(folder / NAME) as part:
        with open(part, 'wb') as file:
            write_safetensors(file, everything, metadata)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name without data
        _keep_previous(folder)


def _keep_previous(folder):
    last, previous = folder / NAME, folder / PREVIOUS
    if not last.exists():
        return
    link = folder / f'.{PREVIOUS}-{os.getpid()}'
    try:
        # a second name of the same file: at no moment is there no checkpoint
        link.unlink(missing_ok=True)
        os.link(last, link)
        os.replace(link, previous)
    except OSError:  # no hard links on this disk: the reader finds the previous one
        link.unlink(missing_ok=True)
        os.replace(last, previous)


def read_checkpoint(folder):
    """Read the last checkpoint of a run, or the previous one if it is damaged.

    Parameters
    ----------
    folder : path
        The run's.

    Returns
    -------
    (weights, config, tensors, facts) as written, or None if there is none yet

    Raises
    ------
    InputError
        There are checkpoints, but none can be read.
    """
    there = [Path(folder) / n for n in (NAME, PREVIOUS) if (Path(folder) / n).exists()]
    damage = []
    for path in there:
        try:
            return _read(path)
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            damage.append(f'{path}: {error}')
    if damage:
        raise InputError(
            'no checkpoint can be read; the disk may be damaged:\n' + '\n'.join(damage)
        )
    return None


def _read(path):
    weights, tensors = {}, {}
    with safetensors.safe_open(path, 'numpy') as file:
        metadata = file.metadata() or {}
        facts = json.loads(metadata['training'])
        if facts.pop('format') != FORMAT:
            raise ValueError('a checkpoint of another version of ddetr-np')
        for name in file.keys():
            if name.startswith(PREFIX):
                kind, _, rest = name.removeprefix(PREFIX).partition('/')
                tensors.setdefault(kind, {})[rest] = file.get_tensor(name)
            else:
                weights[name] = file.get_tensor(name)
    return weights, json.loads(metadata['config']), tensors, facts


def sweep(folder):
    """Remove what killed processes have left half-written.

    Parameters
    ----------
    folder : path
        The run's; nothing may be writing to it.
    """
    for path in [*Path(folder).glob('.*.part.*'), *Path(folder).glob(f'.{PREVIOUS}-*')]:
        with contextlib.suppress(OSError):
            path.unlink()
