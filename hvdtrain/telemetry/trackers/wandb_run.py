"""A run on Weights & Biases. Source: https://docs.wandb.ai/ref/python"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvdtrain.telemetry.trackers.run_id import keep_id, read_id
from hvdtrain.telemetry.trackers.worker import About, Record, Status


class WandbRun:
    """A run in the project `about.place`, by wandb's own settings (WANDB_…, `wandb login`).

    Only what the records hold is sent: no output, code, versions, state of the machine or of git.
    """

    def __init__(self, about: About, tell: Callable[[str], None]) -> None:
        self._about = about
        self._wandb: Any = importlib.import_module("wandb")
        self._run: Any = None

    def open(self) -> None:
        """Begin the run, or go on with it: which of them, the server knows by the id."""
        file = Path(self._about.root) / "wandb.id"
        run_id = read_id(file)
        if run_id is None:
            run_id = secrets.token_hex(8)
            keep_id(file, run_id)
        entity, _, project = self._about.place.rpartition("/")
        self._run = self._wandb.init(
            entity=entity or None,
            project=project,
            name=self._about.run,
            id=run_id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or self._about.root,
            config={**self._about.config, "hvdtrain.version": self._about.version},
            allow_val_change=True,
            save_code=False,
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        # wandb's own steps never go back; those of a run that was resumed after a crash do.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, record: Record) -> None:
        """Hand a record to wandb's own process, which sends it."""
        self._run.log({"step": record.step, **record.values})

    def finish(self, status: Status, page: Path | None) -> None:
        """The page is an artifact of the run. Waits until all is sent."""
        if page is not None:
            artifact = self._wandb.Artifact(f"report-{self._run.id}", type="report")
            artifact.add_file(str(page))
            self._run.log_artifact(artifact)
        if status == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "complete" else 1)
        self._wandb.teardown()
