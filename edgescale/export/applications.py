"""C of the example applications that depends on a model's ports."""

from __future__ import annotations

from edgescale.core.errors import UnsupportedModelError
from edgescale.export.source import Port, Source, fill, one_line

C_TYPES = {"int8": "int8_t", "int16": "int16_t", "float32": "float"}
_INTEGERS = {"int8": "s8", "int16": "s16"}
"""Port type -> how functions of es_quantize.h call it."""


def check_types(source: Source, layout: str) -> None:
    """Raise UnsupportedModelError where the example application cannot convert a port's numbers."""
    for port in (*source.inputs, *source.outputs):
        if port.dtype not in C_TYPES:
            raise UnsupportedModelError(
                f"{source.entry.id}: the example application of layout {layout} knows {' and '.join(C_TYPES)}, but "
                f"{port.name!r} is {port.dtype}; export it with --layout plain or cmake"
            )


def example_main(source: Source) -> str:
    """The application that `io_*.c` brings to a workstation or a core: float32 samples in, float32 outputs out."""
    reads = [_read(port, first=index == 0) for index, port in enumerate(source.inputs)]
    several = len(source.inputs) > 1 or len(source.outputs) > 1
    values = {
        "HEADER": source.header,
        "RUN": f"{source.name}_run",
        "RESET": _reset(source, "    "),
        "READ": "".join(reads),
        "WRITE": "".join(_write(port) for port in source.outputs),
        "SEVERAL": ", inputs and outputs of a sample in the header's order" if several else "",
    }
    return fill(source.template("examples/common/main.c.in"), values)


def _read(port: Port, first: bool) -> str:
    """Statements that fill an input; only before the first number may the file end."""
    if first:
        cut = "                io_exit(3); /* a sample cut short */\n"
        stop = f"            if (i != 0 || got != 0) {{\n{cut}            }}\n"
    else:
        stop = "            io_exit(3); /* a sample cut short */\n"
    value = "real"
    if port.dtype in _INTEGERS:
        value = f"es_real_to_{_INTEGERS[port.dtype]}(real, {port.macro}_SCALE, {port.macro}_ZERO_POINT)"
    name = _local(port)
    return (
        f"    {C_TYPES[port.dtype]} *{name} = {port.accessor}(); /* {one_line(port.name)} */\n"
        f"    for (int32_t i = 0; i < {port.macro}_SIZE; i++) {{\n"
        "        const size_t got = io_read(&real, sizeof real);\n"
        "        if (got != sizeof real) {\n"
        f"{stop}"
        "            return 0;\n"
        "        }\n"
        f"        {name}[i] = {value};\n"
        "    }\n"
    )


def _write(port: Port) -> str:
    name = _local(port)
    value = f"{name}[i]"
    if port.dtype in _INTEGERS:
        value = f"es_{_INTEGERS[port.dtype]}_to_real({value}, {port.macro}_SCALE, {port.macro}_ZERO_POINT)"
    return (
        f"    const {C_TYPES[port.dtype]} *{name} = {port.accessor}(); /* {one_line(port.name)} */\n"
        f"    for (int32_t i = 0; i < {port.macro}_SIZE; i++) {{\n"
        f"        real = {value};\n"
        "        io_write(&real, sizeof real);\n"
        "    }\n"
    )


def _local(port: Port) -> str:
    """`input`, `output_1`: the end of the accessor's name."""
    kind = "_input" if "_input" in port.accessor else "_output"
    return port.accessor[port.accessor.rindex(kind) + 1 :]


def sketch(source: Source) -> str:
    """An Arduino sketch that runs the model and prints the largest output, or the only one."""
    output = source.outputs[0]
    macro = output.macro
    several = {
        "PRINTS": "It prints the index of the largest output and the time.",
        "RESULT": (
            "  int32_t best = 0;\n"
            f"  for (int32_t i = 1; i < {macro}_SIZE; i++) {{\n"
            "    if (output[i] > output[best]) {\n"
            "      best = i;\n"
            "    }\n"
            "  }\n"
            '  Serial.print("arg max ");\n'
            "  Serial.print(best);"
        ),
    }
    value = f"({macro}_SCALE * (output[0] - {macro}_ZERO_POINT))" if output.dtype in _INTEGERS else "output[0]"
    single = {
        "PRINTS": "It prints the output and the time.",
        "RESULT": f'  Serial.print("output ");\n  Serial.print({value}, 6);',
    }
    values = {
        "HEADER": source.header,
        "RUN": f"{source.name}_run",
        "RESET": _reset(source, "  "),
        "INPUT_BYTES": str(sum(int(port["bytes"]) for port in source.meta["inputs"])),
        "OUTPUT": output.accessor,
        "OUTPUT_TYPE": C_TYPES[output.dtype],
        "ZEROS": "\n".join(_zeros(port) for port in source.inputs),
        "RECEIVE": "\n".join(_receive(port) for port in source.inputs),
        **(several if _size(source.meta["outputs"][0]["stored_shape"]) > 1 else single),
    }
    return fill(source.template("examples/arduino/sketch.ino.in"), values)


def _reset(source: Source, indent: str) -> str:
    """The call that begins a stream, for a model that keeps state; nothing for others."""
    return f"{indent}{source.meta['reset']}(); /* begin a stream */\n" if "reset" in source.meta else ""


def _zeros(port: Port) -> str:
    zero = f"{port.macro}_ZERO_POINT" if port.dtype in _INTEGERS else "0.0f"
    return f"  for (int32_t i = 0; i < {port.macro}_SIZE; i++) {{\n    {port.accessor}()[i] = {zero};\n  }}"


def _receive(port: Port) -> str:
    bytes_ = f"{port.macro}_BYTES"
    read = f"Serial.readBytes(reinterpret_cast<char *>({port.accessor}()), {bytes_})"
    return f"  if ({read} != {bytes_}) {{\n    return;\n  }}"


def _size(shape: list[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
