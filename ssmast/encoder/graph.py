"""An encoder as one graph, waveform -> embedding, for torch.export and ONNX.

A fine-tuned encoder has a second output, the probabilities of its classes. Batch and length stay
free, the log-mel is inside. A graph sees its clip whole: cutting clips longer than a window, and
resampling, are left to the caller.
"""

import contextlib
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssmast.audio import LogMel
from ssmast.audio.mel import ProductMel
from ssmast.audio.synthetic import CLASSES, make_sound
from ssmast.encoder import Encoder
from ssmast.encoder.folder import check_graph
from ssmast.encoder.input import batch_of
from ssmast.encoder.windows import evaluating

ONNX, INT8 = "model.onnx", "model.int8.onnx"
OPSET = 20  # the first with GELU as one operation
# How far onnxruntime may be from PyTorch in any number of an embedding.
TOLERANCE = 1e-4


class _Graph(nn.Module):
    """The module that is exported: waveform (B, S) -> outputs."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = head_sizes(encoder)
        front = encoder.log_mel
        self.log_mel = front if type(front) is not LogMel else ProductMel(**front.settings())
        self.log_mel.to(encoder.device)

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        """Embeddings (B, D), and probabilities (B, C) where there are classes."""
        encoder, backbone = self.encoder, self.encoder.backbone
        # Takes the first sample, so that a clip of none is refused, as PyTorch does, and is not
        # embedded as silence.
        waveform = waveform + 0 * waveform.select(1, 0).unsqueeze(1)
        front = self.log_mel if torch.compiler.is_exporting() else encoder.log_mel
        log_mel = front(waveform)
        if not self.heads:
            return (encoder.pool(log_mel),)
        embeddings = encoder.statistics(log_mel)
        shared = (encoder.layers, encoder.pooling) == (backbone.pool_layers, backbone.global_pool)
        logits = backbone.head(embeddings if shared else backbone.before_head(log_mel))
        if encoder.whitening is not None:
            embeddings = encoder.whitening(embeddings)
        if encoder.info["classifier"]["multi_label"]:
            return embeddings, logits.sigmoid()
        parts = [part.softmax(dim=1) for part in logits.split(self.heads, dim=1)]
        return embeddings, torch.cat(parts, dim=1)


def head_sizes(encoder: Encoder) -> list[int]:
    """Classes of each head of a fine-tuned encoder; none for another.

    Raises:
        ValueError: if the names and the outputs of the backbone do not fit.
    """
    classifier = encoder.info.get("classifier")
    sizes = [len(head["classes"]) for head in classifier["heads"]] if classifier else []
    if classifier and sum(sizes) != encoder.backbone.num_classes:
        raise ValueError(
            f"the encoder has names for {sum(sizes)} classes and {encoder.backbone.num_classes} "
            "outputs; export the folder that `ssmast finetune` wrote"
        )
    return sizes


def output_names(encoder: Encoder) -> list[str]:
    """Names of a graph's outputs."""
    return ["embeddings", "probabilities"] if head_sizes(encoder) else ["embeddings"]


def min_samples(encoder: Encoder) -> int:
    """Samples of the shortest clip that a graph takes: two columns of the last tokens."""
    stem = encoder.backbone.patch_embed
    frames = encoder.backbone.time_stride() + max(1, stem.kernel[1] - 2 * stem.padding[1])
    return encoder.log_mel.samples(frames + 1)


def export_program(encoder: Encoder) -> torch.export.ExportedProgram:
    """The encoder as a torch.export program of any batch and any length.

    Returns:
        A program of (waveform (B, S),) -> (embeddings (B, `encoder.dim`),), of a fine-tuned encoder
        with probabilities (B, C) after them; S at least `min_samples(encoder)`.
    """
    from torch.fx.experimental import _config

    shortest = min_samples(encoder)
    # No size of the example may equal one of the network, or the exporter takes it for that.
    example = torch.zeros(5, max(2 * shortest, encoder.sample_rate) + 7, device=encoder.device)
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("samples", min=shortest)}
    # Without this the exporter concludes from the example that no batch is ever 1.
    patched = _config.patch(  # pyright: ignore[reportAttributeAccessIssue]
        backed_size_oblivious=True
    )
    with evaluating(encoder), torch.no_grad(), patched, _quiet():
        return torch.export.export(
            _Graph(encoder),
            (example,),
            dynamic_shapes=(sizes,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def onnx_model(encoder: Encoder) -> bytes:
    """The encoder as an ONNX model: `waveform` (batch, samples) -> `embeddings` (batch, D).

    A fine-tuned encoder's has `probabilities` (batch, C) too, and its classes as metadata.

    Raises:
        ValueError: if the extra `onnx` is not installed.
    """
    _wants_onnx("onnxscript")
    program = export_program(encoder)
    with _quiet(), torch.no_grad():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["waveform"],
            output_names=output_names(encoder),
        )
    assert exported is not None
    proto = exported.model_proto
    named = [(proto.graph.input[0], ("batch", "samples"))]
    named += [(output, ("batch",)) for output in proto.graph.output]
    for value, names in named:
        for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            axis.dim_param = name
    facts = {
        "sample_rate": encoder.sample_rate,
        "min_samples": min_samples(encoder),
        "window_seconds": encoder.window_seconds,
        "encoder_sha256": encoder.sha256,
    }
    if classifier := encoder.info.get("classifier"):
        facts["classes"] = json.dumps(classifier["heads"])
        facts["multi_label"] = json.dumps(classifier["multi_label"])
        facts["classifier_samples"] = encoder.log_mel.samples(classifier["frames"])
    for key, fact in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, str(fact)
    return proto.SerializeToString()


def quantized(encoder: Encoder, model: bytes) -> bytes:
    """An ONNX model with the weights of its matrix products in int8.

    Activations are scaled dynamically. The front end stays in float32: in 8 bits its filters would
    be others.
    """
    _wants_onnx("onnx")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    proto = onnx.load_from_string(model)
    front = {
        tensor.name
        for tensor in proto.graph.initializer
        if "log_mel." in tensor.name or encoder.log_mel.n_fft // 2 + 1 in tensor.dims
    }
    spared = [node.name for node in proto.graph.node if front & set(node.input)]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        whole.write_bytes(model)
        quantize_dynamic(
            whole,
            small,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=spared,
            weight_type=QuantType.QInt8,
        )
        return small.read_bytes()


class OnnxEncoder:
    """An exported graph in onnxruntime.

    Args:
        model: file or its content.
        threads: that one run uses; 0 for one a core.

    Raises:
        ValueError: if the extra `onnx` is not installed, the graph is damaged or gives no such
            output, or a clip is shorter than it takes.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, model: str | Path | bytes, *, threads: int = 0) -> None:
        _wants_onnx("onnxruntime")
        import onnxruntime

        if not isinstance(model, bytes) and not Path(model).is_file():
            raise FileNotFoundError(f"no graph at {model}; ssmast export onnx=true writes one")
        if not isinstance(model, bytes):
            check_graph(Path(model))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # those of onnxruntime have no kind in common
            what = "the graph" if isinstance(model, bytes) else model
            raise ValueError(
                f"{what} cannot be loaded ({error}); write it again by ssmast export onnx=true"
            ) from error
        self._outputs = [one.name for one in self._session.get_outputs()]
        self.facts = dict(self._session.get_modelmeta().custom_metadata_map)
        # A classifier's own length may be a column shorter than what a graph surely takes.
        lengths = (self.facts.get(key) for key in ("min_samples", "classifier_samples"))
        self._fewest = min((int(length) for length in lengths if length), default=1)

    def __call__(self, waveform: np.ndarray[Any, Any] | Tensor) -> Tensor:
        """Samples (B, S) at the encoder's rate, of any number type as in `embed` -> (B, D)."""
        return self._run("embeddings", waveform)

    def probabilities(self, waveform: np.ndarray[Any, Any] | Tensor) -> Tensor:
        """The same -> (B, C), of a fine-tuned encoder's graph."""
        return self._run("probabilities", waveform)

    def _run(self, output: str, waveform: np.ndarray[Any, Any] | Tensor) -> Tensor:
        if output not in self._outputs:
            raise ValueError(
                f"this graph gives {', '.join(self._outputs)} and no {output}; ssmast "
                "export onnx=true of a fine-tuned encoder writes one that does"
            )
        feed = {"waveform": batch_of(waveform)}
        samples = feed["waveform"].shape[1]
        if samples < self._fewest:
            raise ValueError(
                f"this graph takes clips of {self._fewest} samples or more, got {samples}"
            )
        (found,) = self._session.run([output], feed)
        return torch.from_numpy(np.asarray(found))


def check_lengths(encoder: Encoder) -> list[int]:
    """Five lengths in samples that a graph is compared at, from its shortest on."""
    rate = encoder.sample_rate
    longest = round(encoder.window_seconds * rate)
    lengths = (min_samples(encoder), longest // 3 + 1, longest // 2 - 1, longest, 2 * longest + 77)
    return [max(length, min_samples(encoder)) for length in lengths]


@torch.no_grad()
def largest_difference(encoder: Encoder, model: bytes, *, lengths: Sequence[int]) -> float:
    """Between the graph in onnxruntime and PyTorch, over batches of one and two clips."""
    session, graph = OnnxEncoder(model), _Graph(encoder)
    largest = 0.0
    for number, length in enumerate(lengths):
        clips = _sounds(encoder.sample_rate, length, count=1 + number % 2)
        with evaluating(encoder):
            wanted = [output.cpu() for output in graph(clips.to(encoder.device))]
        found = [session(clips), session.probabilities(clips)] if graph.heads else [session(clips)]
        for ours, theirs in zip(wanted, found, strict=True):
            largest = max(largest, float((ours - theirs).abs().max()))
    return largest


@torch.no_grad()
def int8_cosines(encoder: Encoder, model: bytes) -> Tensor:
    """Cosine of int8 and float32 embedding of one sound of every class of the built-in corpus."""
    session = OnnxEncoder(model)
    length = max(2 * encoder.sample_rate, min_samples(encoder))
    clips = _sounds(encoder.sample_rate, length, count=len(CLASSES))
    with evaluating(encoder):
        wanted = encoder(clips.to(encoder.device)).cpu()
    return nn.functional.cosine_similarity(wanted, session(clips))


def graph_files(encoder: Encoder, *, int8: bool = False) -> tuple[dict[str, bytes], dict[str, Any]]:
    """ONNX files for an encoder folder, checked, and what was measured of them.

    Returns:
        File name -> content, and facts for the model card.

    Raises:
        ValueError: if onnxruntime gives other embeddings than PyTorch.
    """
    model = onnx_model(encoder)
    lengths = check_lengths(encoder)
    difference = largest_difference(encoder, model, lengths=lengths)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the ONNX graph is off by {difference:.1e} in onnxruntime, wanted at most "
            f"{TOLERANCE:g}; export without onnx=true and report the versions of onnxruntime and "
            "torch"
        )
    files = {ONNX: model}
    facts: dict[str, Any] = {
        "min_samples": min_samples(encoder),
        "checked_lengths": lengths,
        "largest_difference": difference,
    }
    if int8:
        files[INT8] = quantized(encoder, model)
        cosines = int8_cosines(encoder, files[INT8])
        facts["int8_cosine_mean"] = round(float(cosines.mean()), 5)
        facts["int8_cosine_lowest"] = round(float(cosines.min()), 5)
        facts["int8_size"] = round(len(files[INT8]) / len(model), 3)
    return files, facts


def _sounds(rate: int, length: int, *, count: int) -> Tensor:
    """Sounds of the built-in corpus (count, length)."""
    names = list(CLASSES)
    rows = []
    for number in range(count):
        rng = np.random.default_rng(number)
        sound = make_sound(
            names[number % len(names)], rng=rng, num_samples=max(length, 2000), sample_rate=rate
        )
        rows.append(torch.from_numpy(np.asarray(sound[:length], dtype=np.float32)))
    return torch.stack(rows)


def _wants_onnx(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"ONNX needs {module}, which is not installed; pip install 'ssmast[onnx]'")


_LOUD = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "root")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters' warnings about their own internals."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
