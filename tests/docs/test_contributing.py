"""The operation that CONTRIBUTING adds, added."""

import re
import textwrap
from pathlib import Path

import numpy as np

from ddetr_np.backend import replaceable
from ddetr_np.ops import activation
from ddetr_np.testing import CASES, Case, check_case, table

PAGE = Path(__file__).parents[2] / 'CONTRIBUTING.md'


def test_the_operation_and_its_case(monkeypatch):
    text = PAGE.read_text(encoding='utf-8')
    blocks = re.findall('^ *```python\n(.*?)^ *```$', text, re.M | re.S)
    operation, case = map(textwrap.dedent, blocks)
    names = {'replaceable': replaceable, 'sigmoid': activation.sigmoid}
    names['__name__'] = activation.__name__
    exec(operation, names)
    assert names['silu'](np.zeros(1))[0] == 0
    for name in ('silu', 'silu_backward'):
        monkeypatch.setattr(activation, name, names[name], raising=False)
    monkeypatch.setattr(table, 'CASES', dict(CASES))
    exec(case, {'cases_of': table.cases_of, 'Case': Case})
    checks = [
        check for case in table.cases('activation.silu')
        for check in check_case('activation.silu', case)
    ]
    assert len(checks) == 1
    assert all(check.verdict == 'ok' for check in checks)
