"""Whether nothing is lost or wrong when it matters: many runs of one kind, counted. `python -m ebca.bench.reliability`.

A check is a module of `checks/` with `run(options) -> dict`: facts for a JSON report, with the list "failures", which
is empty if all went well, and else has a line for each. A check gets a line in `table.py`.
"""
