"""The run's diary: metrics as JSON lines, and for TensorBoard if asked."""

import json
import math

from ..errors import InputError

NAME = 'metrics.jsonl'


class Log:
    """Appends records to RUN/metrics.jsonl.

    Parameters
    ----------
    folder : Path
        The run's; it exists.
    size : int
        Bytes that are kept: what was written after the checkpoint that a run goes on
        from will be written again.
    tensorboard : bool
        Write scalars to RUN/tensorboard too.
    step : int
        The step a run goes on from.
    """

    def __init__(self, folder, size=0, tensorboard=False, step=0):
        path = folder / NAME
        path.touch()
        self._file = open(path, 'r+', encoding='utf-8', newline='\n')
        self._file.truncate(min(size, path.stat().st_size))
        self._file.seek(0, 2)
        self._board = _open_board(folder, step) if tensorboard else None

    @property
    def size(self):
        """Bytes written so far."""
        self._file.flush()
        return self._file.buffer.tell()

    def write(self, record):
        """Append a record: 'kind', 'step' and numbers.

        Parameters
        ----------
        record : dict
            A float that is not finite is written as null. TensorBoard gets the numbers,
            as kind/name at the step.
        """
        # JSON has no NaN
        record = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in record.items()
        }
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()  # who looks on sees whole lines
        if self._board:
            for name, value in record.items():
                if name not in ('kind', 'step') and isinstance(value, (int, float)):
                    tag = f'{record["kind"]}/{name}'
                    self._board.add_scalar(tag, value, record['step'])

    def close(self):
        """Close the files."""
        self._file.close()
        if self._board:
            self._board.close()


def need_board():
    """Return the class that writes for TensorBoard; InputError says how to get it.

    Returns
    -------
    type
        `tensorboardX.SummaryWriter`.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise InputError(
            "tensorboard = true needs tensorboardX: pip install 'ddetr-np[tensorboard]'"
        ) from error
    return SummaryWriter


def _open_board(folder, step):
    return need_board()(str(folder / 'tensorboard'), purge_step=step or None)


def read_metrics(folder):
    """Return the records of a run so far; a last line without end is left out.

    Parameters
    ----------
    folder : Path
        The run's.

    Returns
    -------
    list of dict
        As `Log.write` took them, null as None; empty if nothing was written yet.
    """
    path = folder / NAME
    if not path.exists():
        return []
    lines = path.read_text(encoding='utf-8').split('\n')
    return [json.loads(line) for line in lines[:-1]]
