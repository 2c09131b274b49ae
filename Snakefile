# One workflow for every grid: a job is a notebook, run by papermill; mcft.grid lists the jobs of a config. `make reproduce` calls this.
#   snakemake --cores 2 --configfile configs/pocket.yaml           everything: problems to tables, figures and the page of results
#   snakemake --cores 2 --configfile configs/ablation.yaml lr      the search for learning rates on the dev split; pilot: what the power calculation rests on
#   snakemake --cores 2 --configfile configs/school.yaml --config 'only={arms: [cft], seeds: [0]}'   some runs of a grid, without its page
#   snakemake --profile configs/slurm --configfile configs/pocket.yaml   everything, each job sent to a Slurm cluster
#   snakemake --cores 1 --configfile configs/pocket.yaml --report report.html   what a finished run did, with its figures
# With --force-use-threads, as in the Makefile, local jobs share one Snakemake and the imports of their kernels.
# A run folder is complete when it holds run.json; an interrupted stage goes on from the rows it had written.
import json, os, re, sys
from mcft.compare import save_rows
from mcft.core import write_if_changed
from mcft.costs import expected_text
from mcft.grid import REPORTS, check_grid, check_kept, check_rates, drop_weights, jobs, models, read_grid, run_job
from mcft.grid import search_scores, to_run, warm_kernels
from mcft.report import verdicts_of

FILE = os.path.relpath(workflow.configfiles[0]) if workflow.configfiles else "configs/pocket.yaml"
CONFIG = check_grid(config) if config else read_grid(FILE)
RUN, JOBS = CONFIG["run_dir"], jobs(CONFIG, FILE)
LAST = [job for job in JOBS.values() if job.section in REPORTS]  # what reads all runs of the grid
NOTEBOOKS = tuple(dict.fromkeys(job.nb for job in JOBS.values()))


def start(name):  # in a kernel that has the imports already, unless this process runs one job alone
    run_job(JOBS[name], RUN, warm_kernels(NOTEBOOKS) if workflow.is_main_process else None)


def scored(what):  # the finished evaluations of the pilot or the search
    return [f"{RUN}/{m.score}/run.json" for m in models(CONFIG, what)]


def wanted(wildcards):
    "Tables, figures, costs; without a report, or for some arms or seeds `only`, the evaluations and probes. An arm without a learning rate stops here, before anything runs."
    check_rates(CONFIG)
    check_kept(CONFIG)
    runs = [f"{RUN}/{name}/run.json" for name in to_run(CONFIG)]
    return runs if CONFIG["only"] else [f for job in LAST for f in job.makes] or runs


onstart:
    if workflow.use_threads and workflow.local_exec:
        warm_kernels(NOTEBOOKS)  # imports while the checks below go on
    from mcft.preflight import check_run # torch is loaded once, and not again for each job
    check_run(CONFIG, FILE, workflow.non_local_exec)
    print(expected_text(CONFIG, workflow.cores or 1), file=sys.stderr)


onsuccess:
    drop_weights(CONFIG, JOBS)


onerror:
    drop_weights(CONFIG, JOBS)


rule all:
    input: wanted


rule lr:
    input: scored("lr")
    run:
        write_if_changed(CONFIG["lr_rows"], search_scores(CONFIG).to_csv(index=False))


rule pilot:
    input: scored("pilot")
    run:
        save_rows(verdicts_of(CONFIG, what="pilot"), CONFIG["pilot"]["rows"])


for section in dict.fromkeys(job.section for job in JOBS.values() if job.section not in REPORTS):
    OWN = [job for job in JOBS.values() if job.section == section]

    rule:
        name: {"eval": "evaluate"}.get(section, section)
        input: lambda wildcards: JOBS[wildcards.job].needs
        output: f"{RUN}/{{job}}/run.json"
        params: asked=lambda wildcards: json.dumps(JOBS[wildcards.job].params, sort_keys=True)  # others make it run again
        priority:
            # what is short fills the end; where weights are dropped, what can end goes before what can begin
            int(section.startswith(("eval", "probe")) == bool(CONFIG["drop_weights"]))
        wildcard_constraints:
            job="|".join(re.escape(job.name) for job in OWN),
        resources:
            **(CONFIG["resources"] if any(job.loads for job in OWN) else {}),
        run:
            drop_weights(CONFIG, JOBS)  # of models that nothing waits for any more
            start(wildcards.job)


for job in LAST:

    rule:
        name: job.section
        input: job.needs
        output: [report(f, category="figures") if f.endswith(".png") else f for f in job.makes]
        params: job=job.name
        run:
            start(params.job)
