"""Writes the node tests of the installed onnx package as folders: `python onnx_node_cases.py OUT`.

Each folder has model.onnx and test_data_set_0/{input,output}_*.pb, as older onnx packages ship them
in onnx/backend/test/data/node."""
import os
import sys
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_node_model_tests

for case in load_node_model_tests():
    graph = case.model.graph
    if not all(v.type.HasField("tensor_type") for v in list(graph.input) + list(graph.output)):
        continue
    folder = os.path.join(sys.argv[1], case.name)
    data = os.path.join(folder, "test_data_set_0")
    os.makedirs(data, exist_ok=True)
    onnx.save(case.model, os.path.join(folder, "model.onnx"))
    inputs, outputs = case.data_sets[0]
    for kind, values, infos in (("input", inputs, graph.input), ("output", outputs, graph.output)):
        for i, (value, info) in enumerate(zip(values, infos)):
            tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, info.name)
            with open(os.path.join(data, f"{kind}_{i}.pb"), "wb") as f:
                f.write(tensor.SerializeToString())
