"""Back end for ONNX Runtime: the variant's own ONNX file with the session options that make it fast and exact.

artifact.json (and `Artifact.meta`): file, the model's name in the folder; session, what
`edgescale.runtime.ort.open_session` takes; inputs and outputs, each with name, shape (-1: any size) and dtype;
unfused, where there are any: layers of weights in blocks that ONNX Runtime dequantizes on every run (see `fused`).

session.qdq_matmulnbits_accuracy_level=4 lets layers of 4- and 8-bit weights in blocks round their input to int8 block
by block and multiply integers (MiniLM, 6 layers of 384: 0.6 of the float net's time; without it 2 to 5 times it).

Why these options (ONNX Runtime 1.32, x86-64 with AVX-512 VNNI, batch 1, p50 of 300 interleaved runs, us):

| option                             | int8 5 K params | int8 100 K | fp32 100 K | int8 6x conv 64 | fp32 6x conv 64 |
|------------------------------------|-----------------|------------|------------|-----------------|-----------------|
| ORT_ENABLE_ALL, 1 thread (chosen)  | 23              | 67         | 100        | 507             | 1769            |
| ORT_ENABLE_EXTENDED                | 28              | 78         | 243        | 542             | 2463            |
| ORT_ENABLE_BASIC (nothing fused)   | 66              | 309        | 251        | 2626            | 2492            |
| session.disable_prepacking=1       | 33              | 135        | 114        | 797             | 1723            |
| session.x64quantprecision=1        | 30              | 115        | 103        | 1448            | 1752            |
| session.qdqisint8allowed=1         | 23              | 67         | 100        | 504             | 1733            |
| session.set_denormal_as_zero=1     | 23              | 67         | 100        | 504             | 1745            |
| 2 threads                          | 24              | 72         | 106        | 508             | 1748            |
| 2 threads, allow_spinning=0        | 51              | 103        | 110        | 520             | 1793            |

So the defaults stay, with one thread. session.x64quantprecision is "auto": x86 processors without VNNI add
products of uint8 and int8 in 16 bits with saturation, which gives other results than every other processor
(onnxruntime#12088); there, and only there, the exact and slower kernels are chosen. A graph saved after
optimization at this level holds layouts of the processor that made it, so the plain graph is shipped.
"""

from edgescale_onnx.backend import BACKEND

__all__ = ["BACKEND"]
