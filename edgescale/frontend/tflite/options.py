"""Which options of which operator are read: the schema's table and its scalar fields."""

from __future__ import annotations

_WINDOW = ("Padding", "StrideH", "StrideW")
_ACTIVATION = ("FusedActivationFunction",)
_POOL = ("Pool2DOptions", (*_WINDOW, "FilterHeight", "FilterWidth", *_ACTIVATION))
_DILATION = ("DilationHFactor", "DilationWFactor")

OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "CONV_2D": ("Conv2DOptions", (*_WINDOW, *_DILATION, *_ACTIVATION)),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", (*_WINDOW, *_DILATION, "DepthMultiplier", *_ACTIVATION)),
    "FULLY_CONNECTED": ("FullyConnectedOptions", (*_ACTIVATION, "WeightsFormat", "KeepNumDims")),
    "ADD": ("AddOptions", (*_ACTIVATION, "PotScaleInt16")),
    "SUB": ("SubOptions", (*_ACTIVATION, "PotScaleInt16")),
    "MUL": ("MulOptions", _ACTIVATION),
    "AVERAGE_POOL_2D": _POOL,
    "MAX_POOL_2D": _POOL,
    "MEAN": ("ReducerOptions", ("KeepDims",)),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
    "CONCATENATION": ("ConcatenationOptions", ("Axis", *_ACTIVATION)),
    "LEAKY_RELU": ("LeakyReluOptions", ("Alpha",)),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (
        "UnidirectionalSequenceLSTMOptions",
        (*_ACTIVATION, "CellClip", "ProjClip", "TimeMajor"),
    ),
    "CALL_ONCE": ("CallOnceOptions", ("InitSubgraphIndex",)),
    "SPLIT": ("SplitOptions", ("NumSplits",)),
    "SPLIT_V": ("SplitVOptions", ("NumSplits",)),
    "STRIDED_SLICE": (
        "StridedSliceOptions",
        ("BeginMask", "EndMask", "EllipsisMask", "NewAxisMask", "ShrinkAxisMask", "Offset"),
    ),
}
"""Operator -> (table of the BuiltinOptions union, fields)."""

REAL_OPTIONS = ("Beta", "Alpha", "CellClip", "ProjClip")
"""Options that are real numbers; all others are integers."""

ACTIVATIONS = {0: "NONE", 1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6", 4: "TANH", 5: "SIGN_BIT"}
"""ActivationFunctionType of the schema."""

SAME, VALID = 0, 1
"""Padding of the schema."""
