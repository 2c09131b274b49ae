# What comes after critique fine-tuning: every job is a notebook, run by papermill; mcft.beyond lists them. `make beyond` calls this.
#   snakemake -s beyond.smk --cores 2 --configfile configs/beyond.yaml        everything
#   snakemake -s beyond.smk --cores 2 --configfile configs/beyond.yaml lr     the search of learning rates on the dev split
# A run folder is complete when it holds run.json; an interrupted stage goes on from the rows it had written.
import os
from mcft.beyond import jobs, read_plan, search_jobs, search_scores
from mcft.core import run_notebook, write_if_changed

CONFIG = os.path.relpath(workflow.configfiles[0]) if workflow.configfiles else "configs/beyond.yaml"
PLAN = {**read_plan(CONFIG), **{k: config[k] for k in ("run_dir",) if k in config}}
RUN, GRID, SEARCH = PLAN["run_dir"], jobs(PLAN), search_jobs(PLAN)
JOBS, RATES = {**SEARCH, **GRID}, PLAN["search"].get("rows", [])  # the file of the search's scores: the grid waits for it


rule all:
    input:
        f"{RUN}/15_beyond/run.json",


rule beyond:
    input:
        [f"{RUN}/{name}/run.json" for name in GRID],
        RATES,
    output:
        f"{RUN}/15_beyond/run.json",
    run:
        run_notebook("nbs/15_beyond.ipynb", f"{RUN}/15_beyond/15_beyond.ipynb", {
            "config": CONFIG, "rows": f"{RUN}/results", "figures": f"{RUN}/figures", "out_dir": f"{RUN}/15_beyond", "collect": RUN}, examples=False)


rule lr:
    input:
        [f"{RUN}/{name}/run.json" for name in SEARCH],
    run:
        write_if_changed(RATES, search_scores(PLAN).to_csv(index=False))


rule job:
    input:
        lambda wc: JOBS[wc.job]["needs"],
        lambda wc: RATES if wc.job in GRID and wc.job not in SEARCH else [],
    output:
        f"{RUN}/{{job}}/run.json",
    wildcard_constraints:
        job="|".join(JOBS),
    resources:
        **PLAN["resources"],
    run:
        job = JOBS[wildcards.job]
        run_notebook(job["nb"], f"{RUN}/{wildcards.job}/{os.path.basename(job['nb'])}", job["params"], examples=False)
