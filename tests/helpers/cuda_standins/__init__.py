"""Stand-ins for NVIDIA's libraries, over which ONNX Runtime's real CUDA provider opens sessions on any machine.

The provider decides where nodes run, where copies go, which layout a graph gets and what is fused, all before anything
runs on a GPU. So its decisions can be tested without one. `build` makes the libraries; `sessions` opens graphs in an
interpreter that has onnxruntime-gpu, which is never the one of the tests, because that package excludes onnxruntime.
"""
