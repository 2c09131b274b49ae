# From problems to figures: every rule is a notebook, run by papermill. `make reproduce` calls this with configs/pocket.yaml.
#   snakemake --cores 2 --configfile configs/pocket.yaml           everything
#   snakemake --cores 2 --configfile configs/pocket.yaml lr        the search of learning rates on the dev split
# A run folder is complete when it holds run.json; an interrupted stage goes on from the rows it had written.
import os
from mcft.ablation import check_config, lr_of, lr_runs, lr_scores, read_config, runs_of
from mcft.core import model_files, resolve, run_notebook

CONFIG = check_config(config) if config else read_config("configs/pocket.yaml")
RUN = CONFIG["run_dir"]
RUNS = {r["run"]: r for r in runs_of(CONFIG)}
SEARCH = {r["run"]: r for r in lr_runs(CONFIG)}
ALL = {**RUNS, **SEARCH}


def local(*paths):
    "Inputs that lie in this clone; the id of a model or data set on a hub, or the word `benchmarks`, is no file."
    return [p for p in paths if p.startswith(("data/", "runs/", "/", "."))]


def model(folder):
    "A model as input: the run.json of one that this workflow trains; what there is of a local one (whole, in shards, of any origin); nothing of a hub's."
    if folder.startswith(f"{RUN}/"): return [f"{folder}/run.json"]
    return [os.path.relpath(f) for f in model_files(folder)] if resolve(folder).is_dir() else local(folder)


def stage(nb, out, params):
    run_notebook(nb, out, params, examples=False)


wildcard_constraints:
    run="[^/]+",


rule all:
    input:
        f"{RUN}/06_ablation/run.json",
        f"{RUN}/results/measured_runs.csv",


rule data:
    input:
        local(CONFIG["data"]["problems"]),
        model(CONFIG["data"]["model_dir"]),
    output:
        f"{RUN}/01_data/run.json",
    run:
        stage("nbs/01_data.ipynb", f"{RUN}/01_data/01_data.ipynb", {**CONFIG["data"], "out_dir": f"{RUN}/01_data"})


rule critique:
    input:
        f"{RUN}/01_data/run.json",
    output:
        f"{RUN}/02_critique/run.json",
    run:
        stage("nbs/02_critique.ipynb", f"{RUN}/02_critique/02_critique.ipynb", {
            **CONFIG["critique"], "problems": f"{RUN}/01_data/problems.jsonl", "rollouts": f"{RUN}/01_data/rollouts.jsonl", "out_dir": f"{RUN}/02_critique"})


rule masking:
    input:
        f"{RUN}/02_critique/run.json",
    output:
        f"{RUN}/03_masking/run.json",
    run:
        stage("nbs/03_masking.ipynb", f"{RUN}/03_masking/03_masking.ipynb", {
            **CONFIG["masking"], "critiques": f"{RUN}/02_critique/critiques.jsonl", "out_dir": f"{RUN}/03_masking"})


rule train:
    input:
        f"{RUN}/03_masking/run.json",
        lambda wc: [] if wc.run in SEARCH else CONFIG["lr_rows"],
    output:
        f"{RUN}/04_train/{{run}}/run.json",
    run:
        r = ALL[wildcards.run]
        lr = r["lr"] if wildcards.run in SEARCH else lr_of(CONFIG, r["arm"])
        out = f"{RUN}/04_train/{wildcards.run}"
        stage("nbs/04_train.ipynb", f"{out}/04_train.ipynb", {
            **CONFIG["train"], **r["params"], "seed": r["seed"], "lr": lr, "encoded": f"{RUN}/03_masking/encoded.jsonl", "out_dir": out})


def model_of(run):
    return CONFIG["data"]["model_dir"] if run in ("base", "base-dev") else f"{RUN}/04_train/{run}"


rule evaluate:
    input:
        lambda wc: [*model(model_of(wc.run)), *local(CONFIG["eval"].get("problems", CONFIG["data"]["problems"]))],
    output:
        f"{RUN}/05_eval/{{run}}/run.json",
    run:
        dev = wildcards.run in [*SEARCH, "base-dev"]
        params = {**CONFIG["eval"], **(CONFIG["eval_dev"] if dev else {})}
        stage("nbs/05_eval.ipynb", f"{RUN}/05_eval/{wildcards.run}/05_eval.ipynb", {
            **params, "model_dir": model_of(wildcards.run), "out_dir": f"{RUN}/05_eval/{wildcards.run}", "tables_to": ""})


rule tables:
    input:
        expand(f"{RUN}/05_eval/{{run}}/run.json", run=["base", *RUNS]),
    output:
        f"{RUN}/results/pocket_runs.csv",
        f"{RUN}/results/table2.csv",
    run:
        stage("nbs/05_eval.ipynb", f"{RUN}/results/05_eval.ipynb", {
            "model_dir": "", "runs_from": [f"{RUN}/05_eval/{r}" for r in ["base", *RUNS]], "tables_to": f"{RUN}/results"})


rule figures:
    input:
        f"{RUN}/results/pocket_runs.csv",
        f"{RUN}/02_critique/run.json",
    output:
        f"{RUN}/06_ablation/run.json",
    run:
        stage("nbs/06_ablation.ipynb", f"{RUN}/06_ablation/06_ablation.ipynb", {
            "results": f"{RUN}/results", "runs": [f"{RUN}/04_train/{r}" for r in RUNS], "funnel_csv": f"{RUN}/02_critique/funnel.csv",
            "lr_rows": CONFIG["lr_rows"] or "", "figures": f"{RUN}/figures", "out_dir": f"{RUN}/06_ablation"})


rule costs:
    input:
        expand(f"{RUN}/04_train/{{run}}/run.json", run=RUNS),
    output:
        f"{RUN}/results/measured_runs.csv",
    run:
        stage("nbs/12_costs.ipynb", f"{RUN}/results/12_costs.ipynb", {
            "runs": [f"{RUN}/04_train/{r}" for r in RUNS], "measured": f"{RUN}/results/measured_runs.csv"})


rule lr:
    input:
        expand(f"{RUN}/05_eval/{{run}}/run.json", run=["base-dev", *SEARCH]),
    run:
        lr_scores([f"{RUN}/05_eval/{r}" for r in ["base-dev", *SEARCH]]).to_csv(CONFIG["lr_rows"], index=False)
