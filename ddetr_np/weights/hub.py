"""Checkpoints from the Hugging Face hub, by the hub's own client (the extra `hub`)."""

import os
import re
from pathlib import Path

from ..errors import InputError

NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')


def is_name(path):
    """Whether a string may be OWNER/NAME on the hub rather than a path.

    Parameters
    ----------
    path : str or Path
        What the user gave; a Path never is a name.

    Returns
    -------
    bool
        By its form alone: the hub is not asked.
    """
    return isinstance(path, str) and NAME.fullmatch(path) is not None


def fetch(name):
    """Return the folder that holds a model of the hub, downloaded if need be.

    The hub's client keeps its own cache (HF_HOME), shows the progress, and with
    HF_HUB_OFFLINE=1 uses the cache alone.

    Parameters
    ----------
    name : str
        OWNER/NAME.

    Returns
    -------
    Path
        In the client's cache, with config.json and model.safetensors, or
        pytorch_model.bin where the hub has no safetensors.

    Raises
    ------
    InputError
        The client is not installed, the hub does not answer, or it has no such model.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise InputError(
            f'{name} does not exist here, and to fetch it from the Hugging Face hub '
            f'takes pip install "ddetr-np[hub]"; or {_by_hand(name)}'
        ) from None

    def get(file):
        return Path(huggingface_hub.hf_hub_download(name, file))

    try:
        folder = get('config.json').parent
        try:
            get('model.safetensors')
        except LocalEntryNotFoundError:
            raise  # no network: this says nothing of what the hub has
        except EntryNotFoundError:
            get('pytorch_model.bin')
        return folder
    # the client lets through whatever its HTTP library raises, which has changed
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        offline = ' (HF_HUB_OFFLINE is set)' if os.environ.get('HF_HUB_OFFLINE') else ''
        raise InputError(
            f'{name} is no file or folder here, and fetching it from the Hugging Face '
            f'hub failed{offline}: {reason}\nIf it is meant as a path, check it. '
            f'Otherwise {_by_hand(name)}'
        ) from error


def _by_hand(name):
    url = f'https://huggingface.co/{name}'
    folder = name.rpartition('/')[2]
    return (
        f'download config.json and model.safetensors (or pytorch_model.bin) from {url} '
        f'on a machine with network, put both into one folder, say {folder}, and give '
        'that folder in place of the name'
    )
