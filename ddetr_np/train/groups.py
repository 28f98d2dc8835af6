"""Parameter groups by name: which parameters share a learning rate."""

from typing import NamedTuple

from ..errors import InputError


class GroupRule(NamedTuple):
    """Which parameters form a group, and by what their settings are multiplied.

    Parameters
    ----------
    patterns : tuple of str
        A parameter belongs here if its published name holds one of them.
    lr, weight_decay : float
        Factors.
    """

    patterns: tuple
    lr: float = 1.0
    weight_decay: float = 1.0


PUBLISHED_GROUPS = (
    GroupRule(('backbone.0',), lr=0.1),
    GroupRule(('reference_points', 'sampling_offsets'), lr=0.1),
)


class Group:
    """Parameters that share their settings.

    Parameters
    ----------
    params : dict
        Name → Param.
    lr : float
        The rate of now: base_lr times the factors of the schedules.
    weight_decay : float
        λ; schedules leave it as it is.
    """

    def __init__(self, params, lr, weight_decay):
        self.params = params
        self.lr = self.base_lr = lr
        self.weight_decay = weight_decay

    def __repr__(self):
        return (
            f'Group({len(self.params)} params, lr={self.lr}, '
            f'weight_decay={self.weight_decay})'
        )


def make_groups(model, lr, weight_decay, rules=None):
    """Sort what learns into groups: the rest first, then one for each rule.

    Parameters
    ----------
    model : Module
        Its frozen parameters may fit a rule, but are in no group.
    lr, weight_decay : float
        Of the first group; rules multiply them.
    rules : sequence of GroupRule or None
        The first that fits counts. None: the published ones, backbone × 0.1, and × 0.1
        for the linear maps that make reference points and sampling offsets.

    Returns
    -------
    list of Group
        Some may be empty.

    Raises
    ------
    InputError
        A rule fits no name of the model.
    """
    given = rules is not None
    rules = [GroupRule(*r) for r in (rules if given else PUBLISHED_GROUPS)]
    groups = [Group({}, lr, weight_decay)]
    groups += [Group({}, lr * r.lr, weight_decay * r.weight_decay) for r in rules]
    fits = [False] * len(rules)
    for name, p in model.named_params():
        g = 0
        for i, rule in enumerate(rules):
            if any(pattern in name for pattern in rule.patterns):
                g, fits[i] = i + 1, True
                break
        if p.learns:
            groups[g].params[name] = p
    if given and not all(fits):
        rule = rules[fits.index(False)]
        raise InputError(
            f'no parameter belongs to the group {rule.patterns}; patterns are parts of '
            'published names, and the first rule that fits counts'
        )
    return groups
