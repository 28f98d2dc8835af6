"""Models from files, and files from models."""

import difflib
from pathlib import Path

import numpy as np

from ..errors import InputError
from . import hub, packaged
from .files import SUFFIXES, read_tensors
from .infer import infer_config
from .names import BACKBONE, fill_tied_heads, scheme, to_published
from .write import check_writable, write_tensors


def load_model(path, dtype='float32', **overrides):
    """Build the model that a checkpoint fits, with its weights.

    Parameters
    ----------
    path : str or Path
        A detector that comes with the package, 'scenes' or 'bccd' (a folder of such a
        name is './scenes'); a file (.safetensors, .npz, or PyTorch's .pth, .pt, .bin in
        either of its serialisations), a folder as the Hugging Face hub holds it, or a
        name on the hub such as 'SenseTime/deformable-detr' (needs the extra `hub`).
    dtype : {'float32', 'float64'}
        Of the model; the weights are converted.
    **overrides
        Fields of `Config` that the file does not tell or tells wrongly: `M` if it is
        not 8, `dilation=True` for a bare state dict of DC5, `dropout`, `names`, …

    Returns
    -------
    ddetr_np.nn.ddetr.DeformableDETR

    Raises
    ------
    InputError
        The file is absent, damaged, names code, holds NaNs or infinities, or its
        tensors do not fit the model (all of them are listed).

    Examples
    --------
    >>> model = load_model('scenes')
    >>> model.config.Nq, model.config.names[:2]
    (60, ('disc', 'ring'))
    """
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise InputError(f"dtype is {dtype!r}; choose 'float32' or 'float64'")
    place = _find(path)
    tensors, config = _read_model(place, overrides)
    return _build(place, tensors, config, dtype)


def save_model(model, path, half=False):
    """Write a model's weights and configuration.

    Parameters
    ----------
    model : DeformableDETR
        On any device.
    path : str or Path
        .safetensors, .npz, .pth, .pt or .bin; `load_model` reads each of them back
        exactly. What stood there before is replaced when all is written.
    half : bool
        Write matrices and kernels in half precision (see `halved`).

    Raises
    ------
    InputError
        The suffix is unknown or the file cannot be written; a value is too large.
    """
    tensors = model.state_dict()
    if half:
        tensors = halved(tensors)
    write_tensors(path, tensors, {'config': model.config.to_dict()})


def halved(tensors):
    """Return tensors with matrices and kernels in half precision, to be small.

    Vectors stay as they are: they are few, and a batch norm's variance may lie below
    what half precision can hold. Of an array under several names, as the heads that
    refine boxes have, the first name stays; `load_model` gives it the others.

    Parameters
    ----------
    tensors : dict of str → array
        A state dict; integers and vectors are returned as they are.

    Returns
    -------
    dict of str → array
        Each array once; floats with two axes or more as float16.

    Raises
    ------
    InputError
        A value lies beyond half precision, ±65,504.
    """
    once = {}  # id → (name, array)
    for name, a in tensors.items():
        once.setdefault(id(a), (name, a))
    done, large = {}, []
    for name, a in once.values():
        floats = a.ndim > 1 and a.dtype.kind == 'f'
        with np.errstate(over='ignore'):
            done[name] = a.astype(np.float16) if floats else a
        if not np.isfinite(done[name]).all():
            large.append(name)
    if large:
        raise InputError(
            f'{", ".join(large)}: values beyond ±65504, which half precision cannot '
            'hold; keep single precision'
        )
    return done


def convert(src, dst, half=False, **overrides):
    """Write a checkpoint in another format, under the published names.

    The tensors keep their element types, but for bfloat16, which becomes float32.

    Parameters
    ----------
    src : str or Path
        Whatever `load_model` reads.
    dst : str or Path
        .safetensors, .npz, .pth, .pt or .bin.
    half : bool
        Write matrices and kernels in half precision (see `halved`).
    **overrides
        As for `load_model`.

    Returns
    -------
    Config
        What was found of the model.

    Raises
    ------
    InputError
        As `load_model`; or `dst` has an unknown suffix or cannot be written.
    """
    check_writable(dst)
    place = _find(src)
    tensors, config = _read_model(place, overrides)
    model = _build(place, tensors, config, 'float32')  # refuses what does not fit
    tensors = _with_aliases(model, tensors)
    if half:
        tensors = halved(tensors)
    write_tensors(dst, tensors, {'config': config.to_dict()})
    return config


def _with_aliases(model, tensors):
    """The tensors under every name of the model; of aliases the last one counts."""
    names = list(model.named_params(aliases=True))
    arrays = {id(param): tensors[name] for name, param in names if name in tensors}
    return {name: arrays[id(param)] for name, param in names}


def load_backbone(model, path):
    """Overwrite a model's backbone by a ResNet's weights; the rest stays as it is.

    Parameters
    ----------
    model : DeformableDETR
        Its backbone must have the file's blocks and width.
    path : str or Path
        A ResNet of torchvision, timm or transformers (its classifier is not used), or a
        whole detector, of which the backbone is taken.

    Returns
    -------
    DeformableDETR
        The same model.

    Raises
    ------
    InputError
        The file cannot be read or holds another backbone.
    """
    place = _find(path)
    tensors = _published(place, read_tensors(place)[0])
    tensors = {name: a for name, a in tensors.items() if name.startswith(BACKBONE)}
    if not tensors:
        raise InputError(
            f"{place} holds no ResNet: expected torchvision's names (conv1.weight, "
            f"layer1.0.conv1.weight, …), transformers' or {BACKBONE}…"
        )
    _check_finite(place, tensors)
    rest = {n: a for n, a in model.state_dict().items() if not n.startswith(BACKBONE)}
    _load(place, model, rest | tensors)
    return model


def _find(path):
    """The file or folder that a path or a name on the hub stands for."""
    if ours := packaged.find(path):
        return ours
    place = Path(path).expanduser()
    if place.exists():
        return place
    is_file = place.suffix.lower() in SUFFIXES or place.parent.exists()
    if hub.is_name(path) and not is_file:
        return hub.fetch(str(path))
    message = f'{path} does not exist'
    if place.parent.is_dir():
        there = [f.name for f in place.parent.iterdir()]
        near = difflib.get_close_matches(place.name, there, 3)
        if near:
            nearest = ' or '.join(str(place.parent / name) for name in near)
            message += f'; did you mean {nearest}?'
    else:
        message += f', nor does the folder {place.parent}'
    raise InputError(
        f'{message}\nGive the name of a packaged detector '
        f'({", ".join(packaged.names())}), a weights file ({", ".join(SUFFIXES)}), a '
        'folder with config.json and weights, or a name on the Hugging Face hub, '
        'OWNER/NAME (where no folder OWNER is here)'
    )


def _read_model(place, overrides):
    tensors, metadata = read_tensors(place)
    foreign = scheme(tensors) == 'transformers'
    tensors = _published(place, tensors)
    if foreign:
        tensors = fill_tied_heads(tensors)
    elif metadata.get('transformers', {}).get('model_type') != 'deformable_detr':
        metadata.pop('transformers', None)  # the config.json of something else
    _check_finite(place, tensors)
    try:
        return tensors, infer_config(tensors, metadata, **overrides)
    except InputError as error:
        raise InputError(f'{place}: {error}') from None


def _published(place, tensors):
    try:
        return to_published(tensors)
    except InputError as error:
        raise InputError(f'{place}: {error}') from None


def _check_finite(place, tensors):
    bad = [
        name
        for name, array in tensors.items()
        if array.dtype.kind in 'fc' and not np.isfinite(array).all()
    ]
    if bad:
        raise InputError(
            f'{place} holds NaNs or infinities: {len(bad)} of {len(tensors)} tensors\n'
            'Training diverged, or the file is damaged; take an earlier checkpoint\n'
            + '\n'.join(f'  {name}' for name in bad)
        )


def _build(place, tensors, config, dtype):
    # here, so that tensors are read without importing the model
    from ..nn.ddetr import DeformableDETR

    try:
        model = DeformableDETR(config, dtype=dtype, empty=True)
    except MemoryError:
        raise InputError(
            f'{place}: a model of these sizes does not fit into memory: {config}'
        ) from None
    _load(place, model, tensors)
    return model


def _load(place, model, tensors):
    try:
        model.load_state_dict(tensors)
    except InputError as error:
        raise InputError(f'{place}: {error}') from None
