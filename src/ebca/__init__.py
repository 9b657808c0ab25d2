"""ebca: the deployment runtime for Energy-Based Cross Attention on Stable Diffusion."""

__version__ = "0.1.0"
