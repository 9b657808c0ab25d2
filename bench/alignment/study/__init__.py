"""The whole study of exclusive attention on the model `shapes`, in PyTorch; it fits into minutes on one GPU.

plan    what is run, in which order
parts   the four parts, each with a JSON file of its own
cli     python -m ebca.bench.alignment.study
"""
