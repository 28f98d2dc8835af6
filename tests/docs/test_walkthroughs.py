"""The walkthroughs run, and their exercises tell right from wrong."""

import json
import re
from pathlib import Path

import pytest

from ddetr_np.testing import CASES
from ddetr_np.testing.exercises import NOT_YET, RIGHT

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / 'notebooks').glob('[0-9]*.md'))
CELL = re.compile(r'^```\{code-cell\}.*?\n(.*?)^```$', re.M | re.S)
TAGS = re.compile(r'^:tags: \[(.*)\]$', re.M)
LINES = 88


def cells(path):
    """Return [(tags, code)] of a walkthrough's cells."""
    found = []
    for body in CELL.findall(path.read_text(encoding='utf-8')):
        tags = TAGS.match(body)
        found.append((set(tags[1].split(', ')) if tags else set(), body))
    return found


def names(path):
    """Return the numbers of a walkthrough's exercises, as its headings have them."""
    number = int(path.name[:2])
    text = path.read_text(encoding='utf-8')
    return re.findall(rf'^### ({number}\.\d+) ', text, re.M)


def test_there_are_thirteen():
    assert [int(path.name[:2]) for path in FILES] == list(range(1, 14))


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_form(path):
    text = path.read_text(encoding='utf-8')
    titles = re.findall(r'^## (.+)$', text, re.M)
    for title in ('Symbols', 'Something to change', 'Exercises', 'Where next'):
        assert title in titles, title
    assert f'# {int(path.name[:2])}. ' in text
    assert f'{{nb-download}}`{path.stem}.ipynb`' in text
    assert '](../docs/equation-map.md' in text
    assert 3 <= len(names(path)) <= 5
    kinds = [t & {'exercise', 'check', 'solution'} for t, _ in cells(path)]
    kinds = [kind for kind in kinds if kind]
    assert kinds == [{'exercise'}, {'check'}, {'solution'}] * len(names(path))
    for tags, code in cells(path):
        assert ('hide-cell' in tags) == ('solution' in tags)
        assert max(map(len, code.splitlines()), default=0) <= LINES


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_no_second_copy_of_an_operation(path):
    taken = {name.partition('.')[2] for name in CASES}
    taken |= {f'{name}_backward' for name in taken}
    assert 'ms_deform_attn_backward' in taken
    for _, code in cells(path):
        again = taken & set(re.findall(r'^ *def (\w+)', code, re.M))
        assert not again


def executed(site, path):
    """Return the cells of a walkthrough as the site ran it: [(tags, text, images)]."""
    found = site.parent / 'jupyter_execute' / 'walkthroughs' / f'{path.stem}.ipynb'
    for cell in json.loads(found.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] != 'code':
            continue
        text, images = '', 0
        for output in cell['outputs']:
            assert output.get('name') != 'stderr', ''.join(output['text'])
            text += ''.join(output.get('text', ''))
            images += any(kind.startswith('image/') for kind in output.get('data', ()))
        yield set(cell['metadata'].get('tags', ())), text, images


@pytest.mark.slow
@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_checks_fail_on_the_blank_and_pass_on_the_solution(site, path):
    ran = list(executed(site, path))
    said = {
        kind: [text for tags, text, _ in ran if kind in tags]
        for kind in ('check', 'solution')
    }
    for name, before, after in zip(names(path), *said.values(), strict=True):
        assert re.match(rf'{NOT_YET} \({name}\)', before), before
        assert RIGHT not in before
        assert f'{RIGHT} ({name}).' in after.splitlines(), after
        assert NOT_YET not in after
    assert sum(images for *_, images in ran) >= 1


LINK = re.compile(r'\]\((?!https?:)([^)#]+)')


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_links_hold_in_the_repository_too(path):
    for link in LINK.findall(path.read_text(encoding='utf-8')):
        assert (path.parent / link).is_file(), link
