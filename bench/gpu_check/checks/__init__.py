"""The parts of the check: one module each, with a function `run(visit, found)`, named in `ebca.bench.gpu_check.table`.

accuracy, timing    what several parts measure
child               measurements that need a new process: a first image, or the C library
"""
