"""The command line: parse, call, print."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hvdtrain import __version__
from hvdtrain.cli.ckpt import ckpt_app
from hvdtrain.cli.compare import compare
from hvdtrain.cli.crash import unexpected
from hvdtrain.cli.data import data_app
from hvdtrain.cli.doctor import doctor
from hvdtrain.cli.export import export
from hvdtrain.cli.job import (
    AsJson,
    ConfigFile,
    Overrides,
    job,
    load_on_all,
    print_early_error,
)
from hvdtrain.cli.launch import launch_app
from hvdtrain.cli.misuse import config_and_settings, explain
from hvdtrain.cli.predict import predict
from hvdtrain.cli.progress import doing
from hvdtrain.cli.report import report
from hvdtrain.cli.results import eval_text, summary_text
from hvdtrain.cli.scaling import scaling_app
from hvdtrain.cli.study import study_app
from hvdtrain.cli.tune import tune_app
from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import HvdtrainError, exit_codes
from hvdtrain.paths import run_config
from hvdtrain.signals import expect_notice, interrupt_as_usual
from hvdtrain.streams import discard, prepare_streams, print_error, print_error_line, say

EXIT_CODES = "Exit codes: 0 done; " + "; ".join(f"{n} {text}" for n, text in exit_codes().items())

READER_GONE = 141
"""Exit code when the reader of the output has seen enough, for example `| head`, as in a shell."""

app = typer.Typer(
    help="Train image classifiers with large batches on clusters joined by Ethernet.",
    epilog=f"{EXIT_CODES}.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Show a resolved config, or all config fields.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(ckpt_app, name="ckpt")
app.add_typer(tune_app, name="tune")
app.add_typer(study_app, name="study")
app.add_typer(scaling_app, name="scaling")
app.add_typer(launch_app, name="launch")


@app.command()
def train(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG", help="Config file (YAML). Default with --resume RUN: the run's own."
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="never|auto|RUN",
            help="never: start a new run. auto: continue the newest unfinished run with this name "
            "and the same settings, or start a new one. RUN: continue the run in that directory.",
        ),
    ] = "never",
    run_dir: Annotated[
        Path | None, typer.Option(help="Run directory. Default: OUTPUT/<name>-<time>.")
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="Resume although settings that make the run what it is, or images, are others than "
            "when it began. The run records what changed.",
        ),
    ] = False,
    batch_ranks: Annotated[
        int | None,
        typer.Option(
            "--batch-for-ranks",
            min=1,
            metavar="N",
            help="Begin a new run with the global batch that the config has on N ranks, however many "
            "there are: accumulation makes up for the others. A resumed run keeps its own.",
        ),
    ] = None,
) -> None:
    """Train a model.

    Without a launcher it trains in one process. For several ranks start it with hvdtrain launch,
    mpirun, horovodrun or srun: one process per rank.
    """
    config, overrides = config_and_settings(config, overrides, resume)
    with job(config, overrides, before="training began") as comm:
        cfg = load_on_all(comm, config, overrides)
        from hvdtrain.train import train as run_training

        summary = run_training(
            cfg,
            comm,
            resume=resume,
            run_dir=run_dir,
            accept_changes=accept_changes,
            batch_ranks=batch_ranks,
        )
        if comm.rank == 0:
            say(summary_text(summary))


@app.command("eval")
def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory, or one of its checkpoints.")
    ],
    overrides: Overrides = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write a page: accuracy by class, confusions, calibration, the worst mistakes.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate the newest checkpoint of a run.

    On any number of ranks, every validation image is counted exactly once. Training images are not
    needed. Other validation images: data.val=DIR; their classes are matched by name.
    """
    config = run_config(run)
    with job(str(config) if config.is_file() else None, overrides) as comm:
        if html is None:
            from hvdtrain.run.evaluation import evaluate_run

            result = evaluate_run(run, overrides or [], comm)
        else:
            from hvdtrain.inference.evaluated import evaluate_with_page

            result = evaluate_with_page(run, overrides or [], comm, html)
        if comm.rank == 0:
            for warning in result["warnings"]:
                print_error_line(f"hvdtrain: warning: {warning}")
            say(json.dumps(result) if as_json else eval_text(result))


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    world_size: Annotated[int, typer.Option(min=1, help="Number of ranks to plan for.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Print the plan of a run without running it.

    Phases, steps, batch sizes, learning rates, and warnings about the recipe. Needs neither torch
    nor a GPU.
    """
    from hvdtrain.config.networks import check_name
    from hvdtrain.plan.epochs import make_plan
    from hvdtrain.plan.images import look_at_dataset
    from hvdtrain.plan.text import plan_dict, plan_text

    cfg = load_config(config, overrides)
    check_name(cfg.model.name)
    with doing("listing the images"):
        found = look_at_dataset(cfg)
    epochs = make_plan(cfg, world_size, found.images)
    about = (found.reads, found.classes, found.held_out)
    if as_json:
        typer.echo(json.dumps(plan_dict(cfg, epochs, *about)))
    else:
        typer.echo(plan_text(cfg, epochs, *about))


app.command()(predict)
app.command()(export)
app.command()(report)
app.command()(compare)
app.command()(doctor)


@app.command()
def models() -> None:
    """List the models for model.name."""
    with doing("importing torch"):
        from hvdtrain.models import describe_models
    typer.echo("\n".join(describe_models()))


@app.command()
def metrics() -> None:
    """List the metrics that every rank serves.

    Prints a Markdown table.
    """
    from hvdtrain.telemetry.metrics import table

    typer.echo(table())


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the resolved config as YAML."""
    import yaml

    cfg = load_config(config, overrides)
    typer.echo(yaml.safe_dump(cfg.model_dump(), sort_keys=False, allow_unicode=True).rstrip())


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the config, for editors."""
    typer.echo(json.dumps(Config.model_json_schema(), indent=1))


@config_app.command("reference")
def config_reference() -> None:
    """Print all fields, their values and their meaning, as Markdown."""
    from hvdtrain.config.reference import reference

    typer.echo(reference().rstrip())


def _version(value: bool) -> None:
    if value:
        typer.echo(f"hvdtrain {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: print one line for each fault, and end with a documented exit code."""
    expect_notice()
    prepare_streams()
    try:
        interrupt_as_usual()
        code = app(standalone_mode=False)
    except HvdtrainError as error:
        # An error that all ranks share comes from rank 0 alone.
        if error.everywhere:
            print_error(str(error))
        else:
            print_early_error(str(error), os.environ)
        sys.exit(error.exit_code)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except SystemExit as end:  # of click, which knows only the code 1 for it
        if isinstance(end.__context__, BrokenPipeError):
            discard(sys.stdout)
            sys.exit(READER_GONE)
        raise
    except Exception as error:  # noqa: BLE001 - users see no traceback
        if not hasattr(error, "format_message"):
            fault = unexpected(error)
            print_error(str(fault))
            sys.exit(fault.exit_code)
        text = error.format_message()
        if text.startswith("Usage: "):  # a command without arguments: print its help
            typer.echo(text, err=True)
        else:
            print_early_error(explain(error), os.environ)
        sys.exit(2)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
