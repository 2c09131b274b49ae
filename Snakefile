# From problems to figures: every rule is a notebook, run by papermill. `make reproduce` calls this with configs/pocket.yaml.
#   snakemake --cores 2 --configfile configs/pocket.yaml           everything
#   snakemake --cores 2 --configfile configs/pocket.yaml lr        the search of learning rates on the dev split
#   snakemake --cores 2 --configfile configs/ablation.yaml experiment   the ablation as an experiment
#   snakemake --profile configs/slurm --configfile configs/pocket.yaml   everything, each job sent to a Slurm cluster
#   snakemake --cores 1 --configfile configs/pocket.yaml --report report.html   what a finished run did, with its figures
# A run folder is complete when it holds run.json; an interrupted stage goes on from the rows it had written.
import os
from mcft.ablation import check_config, encoding_of, encodings, lr_of, lr_runs, lr_scores, pilot_runs, read_config, runs_of, snapshots, train_params
from mcft.core import model_files, resolve, run_notebook, write_if_changed

CONFIG = check_config(config) if config else read_config("configs/pocket.yaml")
CONFIG_FILE = os.path.relpath(workflow.configfiles[0]) if workflow.configfiles else "configs/pocket.yaml"
RUN = CONFIG["run_dir"]
RUNS = {r["run"]: r for r in runs_of(CONFIG)}
SEARCH = {r["run"]: r for r in lr_runs(CONFIG)}
PILOT = {r["run"]: r for r in pilot_runs(CONFIG)}
ALL = {**RUNS, **SEARCH, **PILOT}
ENCODINGS = encodings(CONFIG)
CURVES = {f"{r['run']}@step-{n}": r["run"] for r in snapshots(CONFIG) for n in CONFIG["snapshots"]["at"]}
# Those of 06_ablation that every such config has: they stand in the report.
FIGURES = ["accuracy_by_arm", "accuracy_by_mask_rate", "loss_curves", "funnel", *["learning_rates"] * bool(CONFIG["lr_rows"]),
           *["loss_by_part"] * any(r["params"].get("mask_rate") and r["params"].get("mask_mode", "loss") == "loss" for r in RUNS.values())]
EXPERIMENT = ["planned", "arms", "rates", "masked_loss", *["curves"] * bool(CURVES), "explored"]  # those of 13_experiment


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
    encoding="03_masking[^/]*",


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
    resources:
        **CONFIG["resources"],
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
        lambda wc: [p for p in local(*ENCODINGS[wc.encoding].get("solutions", "").split()) if not p.startswith(f"{RUN}/")],  # those of stage 01 come with it
    output:
        f"{RUN}/{{encoding}}/run.json",
    resources:
        **(CONFIG["resources"] if any(e.get("scores") for e in ENCODINGS.values()) else {}),
    run:
        out = f"{RUN}/{wildcards.encoding}"
        stage("nbs/03_masking.ipynb", f"{out}/03_masking.ipynb", {
            **ENCODINGS[wildcards.encoding], "critiques": f"{RUN}/02_critique/critiques.jsonl", "out_dir": out})


rule train:
    input:
        lambda wc: f"{RUN}/{encoding_of(ALL[wc.run]['params'])}/run.json",
        lambda wc: [] if wc.run in SEARCH else CONFIG["lr_rows"],
    output:
        f"{RUN}/04_train/{{run}}/run.json",
    resources:
        **CONFIG["resources"],
    run:
        r = ALL[wildcards.run]
        lr = r["lr"] if wildcards.run in SEARCH else lr_of(CONFIG, r["arm"])
        out = f"{RUN}/04_train/{wildcards.run}"
        stage("nbs/04_train.ipynb", f"{out}/04_train.ipynb", {**train_params(CONFIG, r), "lr": lr, "out_dir": out})


def model_of(run):
    if run in ("base", "base-dev"): return CONFIG["data"]["model_dir"]
    return f"{RUN}/04_train/{CURVES[run]}/snapshots/{run.split('@')[1]}" if run in CURVES else f"{RUN}/04_train/{run}"


def eval_params(run):
    if run in CURVES: return {**CONFIG["eval"], "n_problems": CONFIG["snapshots"]["n_problems"]}
    return {**CONFIG["eval"], **(CONFIG["eval_dev"] if run in [*SEARCH, *PILOT, "base-dev"] else {})}


rule evaluate:
    input:
        lambda wc: [*model(f"{RUN}/04_train/{CURVES[wc.run]}" if wc.run in CURVES else model_of(wc.run)), *local(CONFIG["eval"].get("problems", CONFIG["data"]["problems"]))],
    output:
        f"{RUN}/05_eval/{{run}}/run.json",
    resources:
        **CONFIG["resources"],
    run:
        stage("nbs/05_eval.ipynb", f"{RUN}/05_eval/{wildcards.run}/05_eval.ipynb", {
            **eval_params(wildcards.run), "model_dir": model_of(wildcards.run), "out_dir": f"{RUN}/05_eval/{wildcards.run}", "tables_to": ""})


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
        report(expand(f"{RUN}/figures/{{name}}.png", name=FIGURES), category="figures"),
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
        folders = {f"{RUN}/05_eval/{run}": r["arm"] for run, r in {"base-dev": dict(arm="base"), **SEARCH}.items()}
        write_if_changed(CONFIG["lr_rows"], lr_scores(folders).to_csv(index=False))


rule pilot:
    input:
        expand(f"{RUN}/05_eval/{{run}}/run.json", run=["base-dev", *PILOT]),
    run:
        from mcft.compare import save_rows
        from mcft.experiment import run_frames
        save_rows(run_frames(CONFIG, "pilot"), CONFIG["pilot"]["rows"])


rule experiment:
    input:
        expand(f"{RUN}/05_eval/{{run}}/run.json", run=["base", *RUNS, *CURVES]),
        CONFIG["lr_rows"],
    output:
        f"{RUN}/13_experiment/run.json",
        report(expand(f"{RUN}/figures/ablation_{{name}}.png", name=EXPERIMENT), category="figures"),
    run:
        stage("nbs/13_experiment.ipynb", f"{RUN}/13_experiment/13_experiment.ipynb", {
            "config": CONFIG_FILE, "pilot": CONFIG["pilot"].get("rows", ""), "rows": f"{RUN}/results", "figures": f"{RUN}/figures", "out_dir": f"{RUN}/13_experiment", "collect": RUN})
