"""Everything that needs an NVIDIA GPU, in parts that fit one short visit to a machine that has one.

cli        the command line: check, pack, unpack
table      the parts: their order, their time limits, what each is for
runner     runs parts one after the other and writes what they find
process    a command in a process group of its own, with a limit
worker     the process of one part
visit      what all parts know: where the engine directories and the results are
results    what a part reports
checks/    the parts themselves, one module each
packed/    engine directories without their random weights
"""
