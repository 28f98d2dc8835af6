"""The equation map: all of the appendix is on it, and all that it names exists."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / 'docs'

TABLE_4 = {  # the symbols of A.7, and how the table describes them
    'm': 'index for attention head',
    'l': 'index for feature level of key element',
    'q': 'index for query element',
    'k': 'index for key element',
    'N_q': 'number of query elements',
    'N_k': 'number of key elements',
    'M': 'number of attention heads',
    'L': 'number of input feature levels',
    'K': 'number of sampled keys in each feature level for each attention head',
    'C': 'input feature dimension',
    'C_v': 'feature dimension at each attention head',
    'H': 'height of input feature map',
    'W': 'width of input feature map',
    'H_l': 'height of input feature map of lth feature level',
    'W_l': 'width of input feature map of lth feature level',
    'A_mqk': 'attention weight of qth query to kth key at mth head',
    'A_mlqk':
        'attention weight of qth query to kth key in lth feature level at mth head',
    'z_q': 'input feature of qth query',
    'p_q': '2-d coordinate of reference point for qth query',
    'p̂_q': 'normalized 2-d coordinate of reference point for qth query',
    'x': 'input feature map (input feature of key elements)',
    'x_k': 'input feature of kth key',
    'x^l': 'input feature map of lth feature level',
    'Δp_mqk': 'sampling offset of qth query to kth key at mth head',
    'Δp_mlqk':
        'sampling offset of qth query to kth key in lth feature level at mth head',
    'W_m': 'output projection matrix at mth head',
    'U_m': 'input query projection matrix at mth head',
    'V_m': 'input key projection matrix at mth head',
    "W'_m": 'input value projection matrix at mth head',
    'φ_l(p̂)': 'unnormalized 2-d coordinate of p̂ in lth feature level',
    'exp': 'exponential function',
    'σ': 'sigmoid function',
    'σ⁻¹': 'inverse sigmoid function',
}
OTHERS = {  # symbols that the appendix uses and Table 4 has not
    'A.2': ['C3, C4, C5', 'x^L'],
    'A.3': ['b_q{x,y,w,h}', 'b̂_q', 'p̂_qx, p̂_qy'],
    'A.4': [
        'D', 'd', 'b̂^d_q', 'b̂^0_q', 'Δb^d_q{x,y,w,h}', 'Δp_mlqkx, Δp_mlqky',
        'i', 'l_i', 'p̂_i', 'b̂_i', 'Δb_i{x,y,w,h}', 's',
    ],
    'A.5': ['x, y, w, h', 'c', 'I'],
}
EQUATIONS = {  # by section: as many as its text has
    'main': {'eq-1', 'eq-1-cost', 'eq-2', 'eq-3', 'deformable-convolution'},
    'A.1': {'a1-offsets', 'a1-after', 'a1-before', 'a1-whole', 'a1-simple'},
    'A.2': {'a2'},
    'A.3': {'a3'},
    'A.4': {
        'a4-refine', 'a4-initial', 'a4-blocked', 'a4-offsets', 'a4-two-stage', 'a4-top',
        'a4-init-weights', 'a4-init-offsets', 'a4-2k',
    },
    'A.5': {'a5'},
    'A.6': {'a6'},
}


@pytest.fixture(scope='module')
def the_map():
    spec = importlib.util.spec_from_file_location('the_map', DOCS / 'equation_map.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['the_map'] = module  # named tuples look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules['the_map']


@pytest.fixture(scope='module')
def entries(the_map):
    return the_map.load()


def test_everything_exists(entries):
    assert len(entries) > 70
    for entry in entries:
        assert entry.code, entry.id
        assert entry.tests, entry.id


def test_table_4_is_on_it_in_its_order(entries):
    assert [e.name for e in entries if e.section == 'A.7'] == list(TABLE_4)


def test_other_symbols_are_on_it(entries):
    symbols = [(e.section, e.name) for e in entries if e.kind == 'symbol']
    for section, names in OTHERS.items():
        assert [name for s, name in symbols if s == section] == names
    assert len(symbols) == len(TABLE_4) + sum(map(len, OTHERS.values()))


def test_equations_and_sections_are_on_it(entries):
    for section, ids in EQUATIONS.items():
        others = {e.id for e in entries if e.section == section and e.kind != 'symbol'}
        assert ids <= others, section
        assert others - ids <= {'a1'}, section


def test_the_paper_has_no_other_symbols(shared):
    """The lists above against the paper's own text."""
    text = (shared / 'paper' / 'appendix.txt').read_text(encoding='utf-8')
    table = text[text.index('Notation Description') :]
    flat = re.sub(r'\s+', ' ', table)
    for description in TABLE_4.values():
        assert description in flat
    rows = [line for line in table.splitlines()[1:] if len(line.split()) > 2]
    assert len(rows) == len(TABLE_4)


def test_lines_are_where_the_definitions_are(entries):
    root = DOCS.parent
    for entry in entries:
        for place in [*entry.code, *entry.tests]:
            name = re.split(r'[.:]+', place.name.partition('(')[0])[-1]
            line = (root / place.file).read_text('utf-8').splitlines()[place.line - 1]
            assert place.line == 1 or re.search(rf'\b{name}\b', line), place


def test_the_page(the_map, entries):
    page = the_map.render(entries).replace('<wbr>', '')
    for entry in entries:
        assert f'map-{entry.id}' in page
        for place in [*entry.code, *entry.tests]:
            assert f'{place.file}:{place.line}' in page
    rows = [line for line in page.splitlines() if line.startswith('| ')]
    assert {len(re.findall(r'(?<!\\)\|', row)) for row in rows} == {5}


GOOD = {
    'id': 'eq', 'kind': 'equation', 'section': 'A.1', 'name': 'Eq.', 'text': 'words',
    'code': ['ddetr_np.ops.boxes.box_from_reference'],
    'tests': ['tests/ops/test_boxes.py::test_against_scipy'],
}
BROKEN = {  # what is changed, and what the message says beside the entry's id
    'no module': (
        {'code': ['ddetr_np.ops.boxen.f']},
        "no ddetr_np.ops.boxen.f: ddetr_np.ops has no 'boxen'",
    ),
    'another package': ({'code': ['ddetr.ops']}, 'no module ddetr'),
    'no function': ({'code': ['ddetr_np.ops.boxes.f']}, 'no ddetr_np.ops.boxes.f'),
    'no method': (
        {'code': ['ddetr_np.nn.ms_deform_attn.MSDeformAttn.call']},
        "MSDeformAttn has no 'call'",
    ),
    'no parameter': (
        {'code': ['ddetr_np.ops.boxes.box_from_reference(box)']}, 'no such parameter',
    ),
    'no field': ({'code': ['ddetr_np.config.Config.Q']}, "Config has no 'Q'"),
    'imported from elsewhere': (
        {'code': ['ddetr_np.loss.matcher.sigmoid']},
        'is ddetr_np.ops.activation.sigmoid: name it where it stands',
    ),
    'no test file': ({'tests': ['tests/ops/test_x.py::test_y']}, 'no file tests/ops'),
    'no test': (
        {'tests': ['tests/ops/test_boxes.py::test_y']},
        "no test 'test_y' in tests/ops/test_boxes.py",
    ),
    'no test named': ({'tests': ['tests/ops/test_boxes.py']}, "no test ''"),
    'no page': ({'pages': ['nowhere.md']}, 'no file nowhere.md'),
    'no figure': ({'figures': ['figures/0.png']}, 'no file figures/0.png'),
    'no walkthrough': ({'walkthroughs': ['notebooks/0.md']}, 'no file notebooks/0.md'),
    'no code': ({'code': []}, 'code is missing'),
    'no tests': ({'tests': []}, 'tests is missing'),
    'a misspelt key': ({'test': ['a']}, "no key 'test'"),
    'another kind': ({'kind': 'lemma'}, 'kind is not one of'),
    'another section': ({'section': 'A.8'}, 'section is not one of'),
}


def write(path, *tables):
    lines = []
    for table in tables:
        lines.append('[[entry]]')
        lines += [f'{key} = {value!r}' for key, value in table.items()]
    path.write_text('\n'.join(lines), encoding='utf-8')
    tomllib.loads(path.read_text(encoding='utf-8'))
    return path


@pytest.mark.parametrize('name', BROKEN)
def test_what_points_nowhere_is_named(name, the_map, tmp_path):
    change, message = BROKEN[name]
    path = write(tmp_path / 'map.toml', {**GOOD, 'id': 'sound'}, {**GOOD, **change})
    with pytest.raises(the_map.MapError, match='(?s)^map.toml:\n  eq: ') as error:
        the_map.load(path)
    assert message in str(error.value)
    assert 'sound' not in str(error.value)


def test_all_problems_are_told_at_once(the_map, tmp_path):
    path = write(
        tmp_path / 'map.toml',
        {**GOOD, 'code': ['ddetr_np.a', 'ddetr_np.b'], 'pages': ['c.md']},
        GOOD,
    )
    with pytest.raises(the_map.MapError) as error:
        the_map.load(path)
    assert len(str(error.value).splitlines()) == 5
    assert 'eq: this id is taken' in str(error.value)


def test_a_map_without_entries(the_map, tmp_path):
    path = tmp_path / 'map.toml'
    path.write_text('')
    with pytest.raises(the_map.MapError, match='no entries'):
        the_map.load(path)
    path.write_text('[[entry')
    with pytest.raises(the_map.MapError, match=r'map\.toml'):
        the_map.load(path)


def test_places(the_map):
    """Attributes of instances, fields, constants, decorated functions, modules."""
    lines = {}
    for name in (
        'nn.ms_deform_attn.MSDeformAttn.value_proj', 'config.Config.K',
        'config.Config.Cv', 'analysis.gradient_norm.ITEMS', 'ops.attention.attention',
        'analysis.formulas',
    ):
        place = the_map.find_code(f'ddetr_np.{name}')
        text = (DOCS.parent / place.file).read_text('utf-8').splitlines()
        lines[name] = text[place.line - 1].strip()
    assert [line.split('(')[0].split(' = ')[0] for line in lines.values()][:5] == [
        'self.value_proj', 'K: int', 'def Cv', 'ITEMS', 'def attention',
    ]
    assert the_map.find_code('ddetr_np.analysis.formulas').line == 1
