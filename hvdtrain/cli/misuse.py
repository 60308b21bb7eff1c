"""What to say of a command line that is typed wrong: one line, with what was probably meant."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from hvdtrain.config.suggestions import FIRST_FIELDS, unknown_key
from hvdtrain.errors import ConfigError
from hvdtrain.paths import run_config

NO_RUNS = {
    "yes",
    "no",
    "true",
    "false",
    "on",
    "off",
    "1",
    "0",
    "y",
    "n",
    "last",
    "latest",
    "newest",
}
"""Words that somebody types after --resume who expects a switch."""


def explain(error: Any) -> str:
    """The line for an error of the command-line library, a `click.UsageError`."""
    kind = type(error).__name__
    command = _command(error.ctx)
    if kind == "NoSuchOption":
        return _no_such_option(error, command)
    text = str(error.format_message()).rstrip(".")
    if kind == "MissingParameter" and error.param.param_type_name == "option":
        text = f"{error.param.opts[0]} is missing"
    elif kind == "MissingParameter" and (name := error.param.metavar or error.param.name.upper()):
        text = f"{name.strip('[]').removesuffix('...')} is missing"
    unit = re.search(r"'(\d+)[A-Za-z]+' is not a valid", text)
    if unit:
        text = f"{text}: write {unit[1]}, without a unit"
    return f"{text}; see {command} --help"


def _command(ctx: Any) -> str:
    """The command that was typed, without its options, whatever the program is called."""
    names: list[str] = []
    while ctx is not None and ctx.parent is not None:
        names.insert(0, ctx.info_name)
        ctx = ctx.parent
    return " ".join(["hvdtrain", *names])


def _no_such_option(error: Any, command: str) -> str:
    option = next((w for w in sys.argv[1:] if w.startswith(error.option_name)), error.option_name)
    option, _, value = option.partition("=")
    if command.split()[1:] in (["launch"], ["launch", "run"]):
        return (
            f"{option}: not an option of launch; the command of the ranks comes after two dashes: "
            "hvdtrain launch --hosts localhost:2 -- train CONFIG …"
        )
    near = min(error.possibilities or [""])
    known = any(param.name == "overrides" for param in error.ctx.command.params)
    if near and not (known and near == "--help"):
        return f"{option}: no such option; did you mean {near}?"
    if not known:
        return f"{option}: no such option; see {command} --help"
    field = _field(option.lstrip("-").replace("-", "_"))
    if field is None:
        return f"{option}: no such option; settings are key=value, see {command} --help"
    if not value:
        after = sys.argv[sys.argv.index(option) + 1 :] if option in sys.argv else []
        value = after[0] if after and "=" not in after[0] else "VALUE"
    return f"{option}: no such option; settings are key=value: {field}={value}"


def _field(name: str) -> str | None:
    """The config field that is meant by `name`."""
    if "." in name:
        return name
    found = re.search(r"did you mean (.*)\?", unknown_key((name,)))
    if found is None:
        return None
    meant = found[1]
    return f"{meant}.{FIRST_FIELDS[meant]}" if meant in FIRST_FIELDS else meant


def only_settings(words: list[str] | None) -> list[str] | None:
    """`words`, if all are key=value. Raises ConfigError for another config, or blanks around =."""
    for position, word in enumerate(words or []):
        if "=" not in word and word.endswith((".yaml", ".yml")):
            raise ConfigError(
                f"{word}: a second config; a command takes one, followed by key=value: to build on "
                "another file, write extends: FILE into the config"
            )
        if word == "=" or (word.endswith("=") and (words or [])[position + 1 :]):
            raise ConfigError(f"{word}: key=value is written without blanks, as in lr.base=0.1")
    return words


def config_and_settings(
    config: str | None, overrides: list[str] | None, resume: str
) -> tuple[str, list[str]]:
    """The config and the settings of `train`; `--resume RUN` alone stands for the run's config.

    Raises ConfigError if there is no config.
    """
    words = list(overrides or [])
    if resume.lower() in NO_RUNS and not Path(resume).exists():
        raise ConfigError(f"--resume {resume}: expected auto, never or the folder of a run")
    if config is not None and "=" in config and not Path(config).exists():
        words, config = [config, *words], None
    if config is not None:
        return config, words
    if resume in ("never", "auto"):
        raise ConfigError(
            "CONFIG is missing: hvdtrain train CONFIG [KEY=VALUE]..., or --resume RUN to go on with "
            "a run's own config; see hvdtrain train --help"
        )
    return str(run_config(Path(resume))), words
