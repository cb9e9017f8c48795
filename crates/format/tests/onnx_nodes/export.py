"""Writes the operator tests of the Python package onnx as plain files: export.py FOLDER.

Each test becomes FOLDER/NAME/: model.onnx, one .pb (TensorProto) for each tensor, and case.json, which says how
they are nested and how close the outputs must be.
"""

import json
import pathlib
import sys
import warnings

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests


def main(folder):
    warnings.filterwarnings("ignore")
    for test in load_model_tests(kind="node"):
        out = folder / test.name
        out.mkdir(parents=True, exist_ok=True)
        (out / "model.onnx").write_bytes(test.model.SerializeToString())
        sets = []
        for inputs, outputs in test.data_sets:
            store = Store(out, len(sets))
            names = [i.name for i in test.model.graph.input]
            sets.append({
                "inputs": [store.put(v, name) for v, name in zip(inputs, names)],
                "outputs": [store.put(v, o.name) for v, o in zip(outputs, test.model.graph.output)],
            })
        case = {"rtol": test.rtol, "atol": test.atol, "sets": sets}
        (out / "case.json").write_text(json.dumps(case))


class Store:
    def __init__(self, folder, number):
        self.folder, self.number, self.count = folder, number, 0

    def put(self, value, name):
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            return [self.put(v, name) for v in value]
        if isinstance(value, onnx.TensorProto):
            proto = value
        elif isinstance(value, onnx.ModelProto) or not isinstance(value, (np.ndarray, np.generic)):
            return {"unsupported": str(type(value))}
        else:
            proto = onnx.numpy_helper.from_array(np.asarray(value), name)
        path = f"{self.number}_{self.count}.pb"
        self.count += 1
        (self.folder / path).write_bytes(proto.SerializeToString())
        return path


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
