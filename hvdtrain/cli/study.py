"""`hvdtrain study`: the group of commands."""

import typer

study_app = typer.Typer(
    help="Batch-size studies, sharpness and loss landscapes.", no_args_is_help=True
)
