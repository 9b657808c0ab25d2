"""TensorRT plans built ahead of time: the image shapes to build for, the list of plans, and the library that builds."""
