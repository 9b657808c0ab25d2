"""ONNX graphs: trace a UNet, split it, convert it to float16, lower it for ONNX Runtime, write it as a component."""
