"""Write the network as an ONNX graph, and run such files without torch."""
