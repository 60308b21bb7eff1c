"""The command line: `hvdtrain` and `python -m hvdtrain`."""

import signal


def main() -> None:
    """Run a command; see `hvdtrain.cli.main`."""
    # Before anything is imported: Ctrl-C would be a traceback there, or be lost. `&` in a script ignores it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hvdtrain.cli.main import main as run_command

    run_command()


if __name__ == "__main__":
    main()
