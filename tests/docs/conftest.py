import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    """The folder of the built site."""
    pytest.importorskip('sphinx', reason='needs the extra docs')
    folder = tmp_path_factory.mktemp('site')
    # a copy of what the build reads: it writes its pages of the modules beside them
    for name in ('docs', 'notebooks'):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns('generated', 'walkthroughs', '__pycache__')
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ('ddetr_np', 'tests', 'CONTRIBUTING.md'):
        (folder / name).symlink_to(ROOT / name)
    build = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-d']
    done = subprocess.run(
        [*build, str(folder / 'doctrees'), str(folder / 'docs'), str(folder / 'html')],
        capture_output=True, text=True, cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / 'html'
