"""`python -m intarsia`."""

from intarsia.cli import main

raise SystemExit(main())
