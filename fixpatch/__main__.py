"""Run the command line as `python -m fixpatch`."""

from fixpatch.cli import main

main()
