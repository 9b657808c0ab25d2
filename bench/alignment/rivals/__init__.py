"""Other ways to make images show every subject, in PyTorch, beside exclusive attention.

All of them guide one sampler of a diffusers pipeline folder, from the same initial noise as the runtime's. This package
needs PyTorch and diffusers (`pip install "ebca[bench]"`), on a CPU or with CUDA.

model        the networks, encoding captions, decoding latents
attention    cross-attention that a guide can change
sampler      guided sampling of a batch
ebcu, exclusive, excite, regulation, oracle   the methods, each a `Guide`
methods      their names and settings
readers      the detector in several processes
"""
