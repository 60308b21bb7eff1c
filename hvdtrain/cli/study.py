"""`hvdtrain study`: the group of commands."""

import typer

from hvdtrain.cli import study_checkpoints, study_noise, study_training

study_app = typer.Typer(
    help="Batch-size studies, noise scale, sharpness and loss landscapes.", no_args_is_help=True
)
study_checkpoints.register(study_app)
study_noise.register(study_app)
study_training.register(study_app)
