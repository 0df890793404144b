"""`python -m edgescale` is the `edgescale` command."""

from edgescale.cli.main import main

main()
