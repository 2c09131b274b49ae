"""Run folders under bad treatment: what a rerun may delete, and what stops it before anything is changed."""
import json, os, shutil, subprocess, sys
import pytest
from mcft.core import check_committed, check_out_dir, publish_checkpoint, run_info, start_run


def begin(folder, n=1, writes=('rows.jsonl',)):
    "A run of stage s, replacing another one in the folder."
    return start_run(folder, 's', dict(n=n), resume='fresh', writes=writes)


def complete(folder, writes=('rows.jsonl',), files=('rows.jsonl',)):
    "A complete run that wrote these files."
    run = begin(folder, writes=writes)
    for name in files:
        (folder/name).parent.mkdir(exist_ok=True)
        (folder/name).write_text('ours')
    run.finish()
    return run


def state(folder) -> dict:
    "Every file below the folder, and what is in it."
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('line', ['../p.txt', '../other/', './', '/', 'figures/../../p.txt', '{}/p.txt', '{}/other/',
                                  '.'])
def test_a_list_that_leads_out_of_the_folder_is_refused(line, tmp_path):
    (tmp_path/'other').mkdir()
    for name in ('p.txt', 'other/a.txt'): (tmp_path/name).write_text('mine')
    complete(tmp_path/'run')
    with open(tmp_path/'run/.files', 'a') as f: f.write(line.format(tmp_path) + '\n')
    before = state(tmp_path)
    with pytest.raises(ValueError, match='no file of this folder'): begin(tmp_path/'run', 2)
    assert state(tmp_path) == before


def test_the_key_of_a_run_is_that_of_the_contents_of_its_inputs(tmp_path):
    source = tmp_path/'in.txt'
    def start(**how): return start_run(tmp_path/'run', 's', dict(lr=1e-4), [source], **how)
    with pytest.raises(FileNotFoundError, match='missing input'): start()
    source.write_text('x')
    run = start()
    run.finish()
    assert start().done and start(digests=run.inputs).done
    source.write_text('y')
    with pytest.raises(ValueError, match='other parameters or inputs'): start()
    assert not start(resume='fresh').done
    with pytest.raises(ValueError, match="resume is 'no'"): start(resume='no')


def edit(run): (run/'rows.jsonl').write_text('labels of mine')
def add(run): (run/'steps/notes.txt').write_text('mine')
def nest(run): shutil.copytree(run.parent/'mine', run/'steps/deep/er')
def link(run): (run/'steps/link').symlink_to(run.parent/'mine')
def move(run): # the folder itself is moved away, a link stands in its place
    (run/'figures').rename(run.parent/'figures')
    (run/'figures').symlink_to(run.parent/'figures')


@pytest.mark.parametrize('harm, says', [(edit, 'was changed after its run ended'), (add, 'is not of the run in'),
                                        (nest, 'is not of the run in'), (link, 'is not of the run in'),
                                        (move, 'behind a link')], ids=lambda x: getattr(x, '__name__', ''))
def test_work_of_somebody_else_in_a_complete_run_stops_its_replacement(harm, says, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/a.txt').write_text('mine')
    run = tmp_path/'run'
    complete(run, ('rows.jsonl', 'steps/', 'figures/plot.png'), ('rows.jsonl', 'steps/one.pt', 'figures/plot.png'))
    harm(run)
    before = state(tmp_path)
    with pytest.raises(ValueError, match=says): begin(run, 2)
    assert state(tmp_path) == before


def test_a_complete_run_nobody_touched_is_replaced_whole(tmp_path):
    complete(tmp_path, ('rows.jsonl', 'steps/'), ('rows.jsonl', 'steps/one.pt'))
    begin(tmp_path, 2)
    assert [p.name for p in tmp_path.rglob('*') if p.name[0] != '.'] == []


@pytest.mark.parametrize('name, content', [('rows.jsonl', None), ('.files', b'my own list\n'), ('.key', b'\xff\x00'),
                                           ('run.json', b'notes'), ('run.json', b'[1]'), ('run.json', b'\xff'),
                                           ('rows.jsonl', b''), ('.files', b'')])
def test_a_file_of_somebody_else_under_a_name_of_ours_is_named(name, content, tmp_path):
    if content is None: (tmp_path/name).symlink_to(tmp_path/'nowhere')
    else: (tmp_path/name).write_bytes(content)
    with pytest.raises(ValueError, match=f'{name} is not of a run'): begin(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def git(folder, *args): subprocess.run(['git', '-C', str(folder), *args], check=True, capture_output=True)


@pytest.mark.parametrize('trap', ['name', 'variable', 'link', 'owner'])
def test_a_tracked_folder_is_found_whatever_git_is_told(trap, tmp_path, monkeypatch):
    git(tmp_path, 'init', '-q')
    (tmp_path/'d').mkdir()
    with open(os.fsencode(tmp_path/'d') + (b'/\xff.txt' if trap == 'name' else b'/a.txt'), 'w'): pass
    git(tmp_path, 'add', '.')
    if trap == 'variable': monkeypatch.setenv('GIT_DIR', str(tmp_path/'nowhere'))
    if trap == 'link': (tmp_path/'l').symlink_to(tmp_path/'d')
    if trap == 'owner':
        if os.getuid(): pytest.skip('only root can give a folder away')
        for p in (tmp_path, *tmp_path.rglob('*')): os.chown(p, 1234, 1234)
    with pytest.raises(ValueError, match='which git tracks'): check_out_dir(tmp_path/('l' if trap == 'link' else 'd'))


def test_a_published_folder_with_changes_of_ones_own_is_not_overwritten(tmp_path):
    git(tmp_path, 'init', '-q')
    folder, own = tmp_path/'base', ('-c', 'user.name=a', '-c', 'user.email=a@b')
    assert check_committed(folder) == folder
    folder.mkdir()
    (folder/'README.md').write_text('a card')
    with pytest.raises(ValueError, match='README.md has changes that are not committed'): check_committed(folder)
    git(tmp_path, 'add', '.')
    git(tmp_path, *own, 'commit', '-qm', 'a')
    assert check_committed(folder) == folder
    (folder/'README.md').write_text('a better card')
    with pytest.raises(ValueError, match='README.md has changes that are not committed'): check_committed(folder)


@pytest.mark.parametrize('place, says', [('{}/file/sub', 'is a file'), ('{}/.git/run', "git's own folder"),
                                         ('/dev/null', 'is a file'), ('~nobody-here/run', 'without ~')])
def test_a_place_where_no_folder_can_be_is_named(place, says, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(ValueError, match=says): start_run(place.format(tmp_path), 's', {})


def test_two_processes_do_not_share_a_folder(tmp_path):
    code = ('from mcft.core import start_run; import sys, time\n'
            f'start_run({str(tmp_path/"run")!r}, "s", dict(n=1), writes=["rows.jsonl"])\n'
            f'open({str(tmp_path/"run/rows.jsonl")!r}, "w").write("being written")\n'
            'print("open", flush=True); time.sleep(60)')
    other = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == 'open\n'
        for n in (1, 2):
            with pytest.raises(ValueError, match='another process has a run open'): begin(tmp_path/'run', n)
        assert (tmp_path/'run/rows.jsonl').read_text() == 'being written'
    finally:
        other.kill()
        other.wait()
    begin(tmp_path/'run', 2).finish()
    assert json.loads((tmp_path/'run/run.json').read_text())['params'] == dict(n=2)


def test_one_process_may_open_its_folder_again(tmp_path):
    begin(tmp_path/'run')
    begin(tmp_path/'run', 2)
    shutil.rmtree(tmp_path/'run')
    assert begin(tmp_path/'run', 3).finish() and run_info(tmp_path/'run')


def test_a_checkpoint_is_published_when_its_training_has_ended_and_rounded_if_asked(tmp_path):
    torch = pytest.importorskip('torch')
    from safetensors.torch import load_file, save_file
    src, dst, weights = tmp_path/'run', tmp_path/'committed', dict(a=torch.tensor([1/3, 2.]))
    (src/'adapter').mkdir(parents=True)
    save_file(weights, src/'adapter'/'adapter_model.safetensors')
    files = 'adapter/adapter_model.safetensors', 'run.json', 'not_there.json'
    with pytest.raises(FileNotFoundError, match='its training has not ended'): publish_checkpoint(src, dst, files)
    assert not dst.exists()
    (src/'run.json').write_text('{"steps": 3}')
    assert publish_checkpoint(src, dst, files)['steps'] == 3
    assert {f.name for f in dst.iterdir()} == {'adapter_model.safetensors', 'run.json'}
    assert torch.equal(load_file(dst/'adapter_model.safetensors')['a'], weights['a'])
    publish_checkpoint(src, dst, files, half=True)
    assert torch.equal(load_file(dst/'adapter_model.safetensors')['a'], weights['a'].bfloat16())
