"""Score a text with onnxruntime: the loss that its own operator finds, and tokenloss's."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import tokenloss

TEXT = b"In the beginning God created the heaven and the earth. And the earth was without form, and void."


def model() -> bytes:
    """Causal model of bytes with random weights: each position sees the sum of those up to it."""
    random = np.random.default_rng(0)
    embedding = random.normal(size=(256, 64)).astype(np.float32)
    weights = {"embedding": embedding, "head": embedding.T / 4, "axis": np.zeros((), np.int64)}
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["embedded"]),
        helper.make_node("CumSum", ["embedded", "axis"], ["summed"]),
        helper.make_node("Tanh", ["summed"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
        helper.make_node("SoftmaxCrossEntropyLoss", ["logits", "targets"], ["loss"], reduction="mean"),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["tokens"]) for name in ("ids", "targets")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "loss")]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "bytes", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


if __name__ == "__main__":
    ids = np.frombuffer(TEXT, np.uint8).astype(np.int64)
    session = onnxruntime.InferenceSession(model(), providers=["CPUExecutionProvider"])
    logits, own = session.run(["logits", "loss"], {"ids": ids[:-1], "targets": ids[1:]})
    print(f"onnxruntime {own:.9g}, tokenloss {tokenloss.cross_entropy(logits, ids[1:]):.9g}")
