"""`python -m hvdtrain`: the command line."""

from hvdtrain.cli.main import main

main()
