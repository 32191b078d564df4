"""The pipeline's own graph: which rule makes a file, from what. Asked of Snakemake, never kept by hand."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumoe.errors import UserError


@dataclass(frozen=True)
class Job:
    """One planned run of a rule; paths are relative to the folder of the Snakefile."""

    rule: str
    snakefile: Path
    line: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Graph:
    """The jobs that make some targets, and the settings they were planned with."""

    jobs: tuple[Job, ...]
    settings: dict[str, Any]

    def maker(self, path: str) -> Job | None:
        """Return the job that writes `path`, None for a file that the pipeline only reads."""
        return next((job for job in self.jobs if path in job.outputs), None)

    def upstream(self, path: str) -> list[Job]:
        """Return the jobs that `path` rests on, its own first, each once, breadth first."""
        found: list[Job] = []
        waiting = [path]
        while waiting:
            job = self.maker(waiting.pop(0))
            if job is not None and job not in found:
                found.append(job)
                waiting.extend(job.inputs)
        return found

    def leaves(self, path: str) -> list[str]:
        """Return the files that `path` rests on and that no rule makes, sorted."""
        inputs = {name for job in self.upstream(path) for name in job.inputs}
        return sorted(name for name in inputs if self.maker(name) is None)


def find_root(start: Path | None = None) -> Path:
    """Return the nearest folder at or above `start` (the working folder) that holds the pipeline.

    Raises:
        UserError: there is none.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "Snakefile").is_file() and (folder / "workflow/rules").is_dir():
            return folder
    raise UserError(f"{here}: no Snakefile of the pipeline here or above; go to the checkout")


def plan(root: Path, targets: Iterable[str], configfiles: Sequence[Path] = ()) -> Graph:
    """Plan `targets` (paths relative to `root`; none means all) from scratch and return the graph. Nothing is run.

    Raises:
        UserError: Snakemake cannot plan them; the message is its own.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        OutputSettings,
        Quietness,
        ResourceSettings,
    )

    said = io.StringIO()
    try:
        with (
            contextlib.chdir(root),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api,
        ):
            flow = api.workflow(
                resource_settings=ResourceSettings(cores=1),
                config_settings=ConfigSettings(configfiles=[path.resolve() for path in configfiles]),
                snakefile=Path("Snakefile"),
            )
            dag = flow.dag(dag_settings=DAGSettings(targets=set(targets), forceall=True))
            # The public calls print the graph; the graph itself is behind them.
            workflow = dag.workflow_api._workflow
            logging.getLogger("snakemake").setLevel(logging.CRITICAL)
            workflow._prepare_dag(forceall=True, ignore_incomplete=True, lock_warn_only=True)
            workflow._build_dag()
            jobs = tuple(
                sorted(
                    (_job(job, root, workflow.linemaps) for job in workflow.dag.jobs),
                    key=lambda job: (job.rule, job.outputs),
                )
            )
            settings = dict(workflow.globals["config"])
    except SystemExit as error:
        # The Snakefile stops with one sentence about a wrong setting.
        raise UserError(" ".join(said.getvalue().split()).removeprefix("lumoe: ")) from error
    except Exception as error:
        raise UserError(f"{root / 'Snakefile'}: cannot be planned: {' '.join(str(error).split())}") from error
    return Graph(jobs, settings)


def _job(job: Any, root: Path, lines: dict[str, dict[int, int]]) -> Job:
    snakefile = Path(str(job.rule.snakefile))
    # A rule knows its line in the Python that Snakemake makes of the file; the map leads back.
    line = lines.get(str(job.rule.snakefile), {}).get(job.rule.lineno, job.rule.lineno)
    return Job(
        rule=job.rule.name,
        snakefile=snakefile.relative_to(root) if snakefile.is_relative_to(root) else snakefile,
        line=line,
        inputs=tuple(map(str, job.input)),
        outputs=tuple(map(str, job.output)),
        command=job.shellcmd or "",
    )
