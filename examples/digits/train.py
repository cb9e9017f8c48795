"""Trains the digits example: a small residual network that reads 8x8 images of handwritten digits.

Needs numpy, scikit-learn and onnx. Writes `digits.onnx` (the trained model) and `test.npz` (the
images it never saw) beside this file. Inside, activations are NHWC so that a convolution is one
matrix product; the exported model is NCHW, as ONNX wants it.
"""

import json
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits  # comes with scikit-learn

SEED = 7
EPOCHS = 60
BATCH = 64
PEAK_RATE = 4e-3
WEIGHT_DECAY = 1e-2
NOISE = 0.04  # standard deviation, in units of the 0..1 pixel range
HERE = Path(__file__).resolve().parent


class Param:
    """A trained array, its gradient and its two Adam moments."""

    def __init__(self, value, decay=False):
        self.value = value.astype(np.float32)
        self.grad = np.zeros_like(self.value)
        self.mean = np.zeros_like(self.value)
        self.square = np.zeros_like(self.value)
        self.decay = WEIGHT_DECAY if decay else 0.0

    def adam(self, rate, step, beta1=0.9, beta2=0.99):
        """One AdamW step (Loshchilov & Hutter 2019)."""
        self.mean += (1 - beta1) * (self.grad - self.mean)
        self.square += (1 - beta2) * (self.grad**2 - self.square)
        mean = self.mean / (1 - beta1**step)
        square = self.square / (1 - beta2**step)
        self.value -= rate * (mean / (np.sqrt(square) + 1e-8) + self.decay * self.value)


def he_normal(rng, shape, fan_in):
    return rng.normal(0.0, np.sqrt(2.0 / fan_in), shape)


def pad(x, p):
    return np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))


class Conv:
    """k x k convolution without bias, zero padding k // 2; weight [k*k*cin, cout]."""

    def __init__(self, rng, cin, cout, k=3, stride=1):
        self.cin, self.cout, self.k, self.stride = cin, cout, k, stride
        self.weight = Param(he_normal(rng, (k * k * cin, cout), k * k * cin), decay=True)
        self.params = [self.weight]

    def taps(self, height, width):
        """The slice of the padded input that each kernel position reads."""
        s = self.stride
        for i in range(self.k):
            for j in range(self.k):
                yield np.s_[:, i : i + s * height : s, j : j + s * width : s, :]

    def out_size(self, size):
        return (size - 1) // self.stride + 1

    def forward(self, x, train):
        n, h, w, _ = x.shape
        padded = pad(x, self.k // 2)
        self.padded_shape = padded.shape
        ho, wo = self.out_size(h), self.out_size(w)
        self.columns = np.concatenate([padded[t] for t in self.taps(ho, wo)], axis=3)
        return self.columns @ self.weight.value

    def backward(self, dy):
        _, ho, wo, _ = dy.shape
        flat = dy.reshape(-1, self.cout)
        self.weight.grad = self.columns.reshape(-1, self.columns.shape[3]).T @ flat
        dcolumns = (flat @ self.weight.value.T).reshape(self.columns.shape)
        dx = np.zeros(self.padded_shape, np.float32)
        for index, tap in enumerate(self.taps(ho, wo)):
            dx[tap] += dcolumns[..., index * self.cin : (index + 1) * self.cin]
        p = self.k // 2
        return dx[:, p : dx.shape[1] - p, p : dx.shape[2] - p, :]

    def emit(self, graph, x, name):
        weight = self.weight.value.reshape(self.k, self.k, self.cin, self.cout)
        return graph.conv(x, name, weight.transpose(3, 2, 0, 1), self.stride, groups=1)


class Depthwise:
    """3 x 3 convolution of each channel by itself, padding 1; weight [9, channels]."""

    def __init__(self, rng, channels):
        self.weight = Param(he_normal(rng, (9, channels), 9), decay=True)
        self.params = [self.weight]

    @staticmethod
    def taps(height, width):
        return [np.s_[:, i : i + height, j : j + width, :] for i in range(3) for j in range(3)]

    def forward(self, x, train):
        self.padded = pad(x, 1)
        taps = self.taps(*x.shape[1:3])
        return sum(self.padded[t] * w for t, w in zip(taps, self.weight.value))

    def backward(self, dy):
        dx = np.zeros_like(self.padded)
        for index, tap in enumerate(self.taps(*dy.shape[1:3])):
            self.weight.grad[index] = (self.padded[tap] * dy).sum(axis=(0, 1, 2))
            dx[tap] += dy * self.weight.value[index]
        return dx[:, 1:-1, 1:-1, :]

    def emit(self, graph, x, name):
        channels = self.weight.value.shape[1]
        weight = self.weight.value.T.reshape(channels, 1, 3, 3)
        return graph.conv(x, name, weight, stride=1, groups=channels)


class BatchNorm:
    """Normalises each channel: by the batch in training, by running statistics afterwards."""

    EPSILON = 1e-5
    MOMENTUM = 0.1

    def __init__(self, channels):
        self.scale, self.shift = Param(np.ones(channels)), Param(np.zeros(channels))
        self.params = [self.scale, self.shift]
        self.mean = np.zeros(channels, np.float32)
        self.var = np.ones(channels, np.float32)

    def forward(self, x, train):
        mean, var = self.mean, self.var
        if train:
            mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            self.mean += self.MOMENTUM * (mean - self.mean)
            self.var += self.MOMENTUM * (var - self.var)
        self.inverse = 1 / np.sqrt(var + np.float32(self.EPSILON))
        self.normal = (x - mean) * self.inverse
        return self.normal * self.scale.value + self.shift.value

    def backward(self, dy):
        count = dy.size // dy.shape[3]
        self.shift.grad = dy.sum(axis=(0, 1, 2))
        self.scale.grad = (dy * self.normal).sum(axis=(0, 1, 2))
        centred = dy - (self.shift.grad + self.normal * self.scale.grad) / count
        return centred * (self.scale.value * self.inverse)

    def emit(self, graph, x, name):
        arrays = {
            "scale": self.scale.value,
            "bias": self.shift.value,
            "mean": self.mean,
            "var": self.var,
        }
        inputs = [x] + [graph.weight(f"{name}.{key}", a) for key, a in arrays.items()]
        return graph.node("BatchNormalization", inputs, name, epsilon=self.EPSILON)


class Relu:
    params = ()

    def forward(self, x, train):
        self.mask = x > 0
        return x * self.mask

    def backward(self, dy):
        return dy * self.mask

    def emit(self, graph, x, name):
        return graph.node("Relu", [x], name)


class Sequence:
    """Named layers, one after the other."""

    def __init__(self, **layers):
        self.layers = layers
        self.params = [p for layer in layers.values() for p in layer.params]

    def forward(self, x, train=False):
        for layer in self.layers.values():
            x = layer.forward(x, train)
        return x

    def backward(self, dy):
        for layer in reversed(self.layers.values()):
            dy = layer.backward(dy)
        return dy

    def emit(self, graph, x, name):
        for key, layer in self.layers.items():
            x = layer.emit(graph, x, f"{name}.{key}" if name else key)
        return x


class Residual(Sequence):
    """x + f(x), where f is the sequence."""

    def forward(self, x, train=False):
        return x + super().forward(x, train)

    def backward(self, dy):
        return dy + super().backward(dy)

    def emit(self, graph, x, name):
        return graph.node("Add", [super().emit(graph, x, name), x], f"{name}.add")


class Head:
    """Mean over the image, then a linear layer; weight [classes, channels]."""

    def __init__(self, rng, channels, classes):
        self.weight = Param(rng.normal(0.0, channels**-0.5, (classes, channels)), decay=True)
        self.bias = Param(np.zeros(classes))
        self.params = [self.weight, self.bias]

    def forward(self, x, train):
        self.shape = x.shape
        self.pooled = x.mean(axis=(1, 2))
        return self.pooled @ self.weight.value.T + self.bias.value

    def backward(self, dy):
        self.weight.grad = dy.T @ self.pooled
        self.bias.grad = dy.sum(axis=0)
        pooled = (dy @ self.weight.value) / (self.shape[1] * self.shape[2])
        return np.broadcast_to(pooled[:, None, None, :], self.shape)

    def emit(self, graph, x, name):
        x = graph.node("GlobalAveragePool", [x], "pool")
        x = graph.node("Flatten", [x], "flatten", axis=1)
        weight = graph.weight(f"{name}.weight", self.weight.value)
        bias = graph.weight(f"{name}.bias", self.bias.value)
        return graph.node("Gemm", [x, weight, bias], name, output="logits", transB=1)


class Graph:
    """Collects the nodes and weights of the ONNX graph."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def weight(self, name, array):
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op, inputs, name, output=None, **attributes):
        output = output or f"{name}.out"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def conv(self, x, name, weight, stride, groups):
        k = weight.shape[2]
        return self.node(
            "Conv",
            [x, self.weight(f"{name}.weight", weight)],
            name,
            kernel_shape=[k, k],
            strides=[stride, stride],
            pads=[k // 2] * 4,
            group=groups,
        )


def build(rng):
    """The network: stem, separable convolution, stride-2 convolution, residual block, head."""
    return Sequence(
        stem=Sequence(conv=Conv(rng, 1, 16), norm=BatchNorm(16), relu=Relu()),
        depthwise=Sequence(conv=Depthwise(rng, 16), norm=BatchNorm(16), relu=Relu()),
        pointwise=Sequence(conv=Conv(rng, 16, 32, k=1), norm=BatchNorm(32), relu=Relu()),
        down=Sequence(conv=Conv(rng, 32, 48, stride=2), norm=BatchNorm(48), relu=Relu()),
        block=Residual(
            conv1=Conv(rng, 48, 48),
            norm1=BatchNorm(48),
            relu1=Relu(),
            conv2=Conv(rng, 48, 48),
            norm2=BatchNorm(48),
        ),
        relu=Relu(),
        fc=Head(rng, 48, 10),
    )


def augment(rng, images):
    """Moves each image by up to one pixel each way and adds a little noise."""
    padded = pad(images, 1)
    size = images.shape[1]
    moved = np.empty_like(images)
    for n, (i, j) in enumerate(rng.integers(0, 3, (len(images), 2))):
        moved[n] = padded[n, i : i + size, j : j + size]
    noise = rng.normal(0.0, NOISE, images.shape).astype(np.float32)
    return np.clip(moved + noise, 0.0, 1.0)


def cross_entropy(logits, labels):
    """Mean loss in nats, and its gradient by the logits."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability = shifted / shifted.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(probability[rows, labels] + 1e-12).mean()
    probability[rows, labels] -= 1
    return loss, probability / np.float32(len(labels))


def fit(network, rng, images, labels):
    """Trains with AdamW and a one-cycle rate: a short rise, then a cosine down to zero."""
    per_epoch = -(-len(images) // BATCH)
    total, step = EPOCHS * per_epoch, 0
    for epoch in range(EPOCHS):
        losses = []
        for batch in np.array_split(rng.permutation(len(images)), per_epoch):
            step += 1
            logits = network.forward(augment(rng, images[batch]), train=True)
            loss, gradient = cross_entropy(logits, labels[batch])
            network.backward(gradient)
            rise = min(1.0, step / (0.1 * total))
            rate = PEAK_RATE * rise * 0.5 * (1 + np.cos(np.pi * step / total))
            for param in network.params:
                param.adam(rate, step)
            losses.append(loss)
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3}  training loss {np.mean(losses):.4f}", flush=True)


def export(network, trained_on):
    """The trained network as an ONNX model, checked."""
    graph = Graph()
    output = network.emit(graph, "image", "")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])
    logits = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 10])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "digits", [image], [logits], graph.weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="examples/digits/train.py",
        doc_string=(
            "Reads one handwritten digit from an 8x8 grey image (pixel / 16, ink is 1). "
            f"Small residual network, trained on {trained_on} images of the UCI data set "
            "Optical Recognition of Handwritten Digits (CC BY 4.0)."
        ),
    )
    classes = json.dumps([str(digit) for digit in range(10)])
    helper.set_model_props(model, {"lessen.task": "classify", "classes": classes})
    onnx.checker.check_model(model, full_check=True)
    return model


def accuracy(logits, labels):
    return (logits.argmax(axis=1) == labels).mean()


def main():
    start = time.perf_counter()
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype(np.int64), test_size=0.5, stratify=labels, random_state=SEED
    )

    rng = np.random.default_rng(SEED)
    network = build(rng)
    with threadpool_limits(1):  # sums in one order, whatever the number of cores
        fit(network, rng, train_x, train_y)
    logits = network.forward(test_x)

    model = export(network, len(train_x))
    test_image = test_x.transpose(0, 3, 1, 2)
    (exported,) = ReferenceEvaluator(model).run(None, {"image": test_image})
    np.testing.assert_allclose(exported, logits, rtol=1e-3, atol=1e-3)

    onnx.save(model, HERE / "digits.onnx")
    np.savez_compressed(HERE / "test.npz", image=np.ascontiguousarray(test_image), label=test_y)

    weights = sum(p.value.size for p in network.params)
    print(f"train accuracy {accuracy(network.forward(train_x), train_y):.4f}  n {len(train_y)}")
    print(f"test accuracy  {accuracy(logits, test_y):.4f}  n {len(test_y)}")
    print(f"model and training code differ by at most {np.abs(exported - logits).max():.1e}")
    for name in ("digits.onnx", "test.npz"):
        print(f"{name:12} {(HERE / name).stat().st_size:7} bytes")
    print(f"{weights} trained values, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
