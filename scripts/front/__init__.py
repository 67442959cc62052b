"""Accuracy over milliseconds: the edge networks and five of other papers on one set, trained, quantised and timed the same way.

PYTHONPATH=scripts python -m front --help
"""
