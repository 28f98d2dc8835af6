import pytest

from ddetr_np.files import replacing


def test_takes_the_place_of_the_file(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('old')
    with replacing(path) as part:
        assert part.suffix == '.json'
        part.write_text('new')
        assert path.read_text() == 'old'
    assert path.read_text() == 'new'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_nothing_changes_if_the_block_fails(tmp_path, error):
    path = tmp_path / 'a.json'
    path.write_text('old')

    def fail():
        with replacing(path) as part:
            part.write_text('half')
            raise error

    pytest.raises(error, fail)
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]
