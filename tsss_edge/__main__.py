"""`python -m tsss_edge` is `tsss-edge`."""

from tsss_edge.cli import main

main()
