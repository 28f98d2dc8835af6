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


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / 'a.json'

    def refused():
        with replacing(path) as part:
            raise PermissionError(13, 'Permission denied', part)

    with pytest.raises(PermissionError) as caught:
        refused()
    assert caught.value.filename == str(path)

    def other():
        with replacing(path):
            raise PermissionError(13, 'Permission denied', 'b.json')

    with pytest.raises(PermissionError) as caught:
        other()
    assert caught.value.filename == 'b.json'

    (tmp_path / 'folder').mkdir()

    def onto_a_folder():
        with replacing(tmp_path / 'folder') as part:
            part.write_text('text')

    with pytest.raises(OSError, match='folder') as caught:
        onto_a_folder()
    assert caught.value.filename == str(tmp_path / 'folder')
