/* Runs a TVM artifact without Python: es_tvm_run LIBRARY INPUT OUTPUT.
 *
 * INPUT holds samples in stored units, one after the other, OUTPUT gets the first output of each, likewise. Element
 * type and shape of the input: the macros ES_INPUT_BITS, ES_INPUT_CODE (of DLPack) and ES_INPUT_SHAPE, from
 * artifact.json. Link with libtvm_runtime and libtvm_ffi of the device; only their C interface is used.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

static int64_t shape[] = {ES_INPUT_SHAPE};
enum { DIMENSIONS = sizeof(shape) / sizeof(shape[0]) };

static void fail(const char *what)
{
    TVMFFIObjectHandle error = NULL;
    TVMFFIErrorMoveFromRaised(&error);
    fprintf(stderr, "es_tvm_run: %s\n", what);
    if (error != NULL) {
        const TVMFFIErrorCell *cell = (const TVMFFIErrorCell *)((const char *)error + sizeof(TVMFFIObject));
        fprintf(stderr, "%.*s\n", (int)cell->message.size, cell->message.data);
    }
    exit(1);
}

static TVMFFIAny integer(int64_t value)
{
    TVMFFIAny any = {.type_index = kTVMFFIInt};
    any.v_int64 = value;
    return any;
}

static TVMFFIAny text(const char *value)
{
    TVMFFIAny any = {.type_index = kTVMFFIRawStr};
    any.v_c_str = value;
    return any;
}

static TVMFFIAny call(TVMFFIObjectHandle function, TVMFFIAny *arguments, int32_t count, const char *what)
{
    TVMFFIAny result = {.type_index = kTVMFFINone};
    if (TVMFFIFunctionCall(function, arguments, count, &result) != 0) fail(what);
    return result;
}

static TVMFFIAny call_global(const char *name, TVMFFIAny *arguments, int32_t count)
{
    const TVMFFIByteArray key = {name, strlen(name)};
    TVMFFIObjectHandle function = NULL;
    if (TVMFFIFunctionGetGlobal(&key, &function) != 0 || function == NULL) fail(name);
    const TVMFFIAny result = call(function, arguments, count, name);
    TVMFFIObjectDecRef(function);
    return result;
}

static TVMFFIAny method(TVMFFIAny module, const char *name)
{
    TVMFFIAny arguments[3] = {module, text(name), integer(0)};
    arguments[2].type_index = kTVMFFIBool;
    const TVMFFIAny found = call_global("ffi.ModuleGetFunction", arguments, 3);
    if (found.type_index != kTVMFFIFunction) fail(name);
    return found;
}

/* The input's memory belongs to this program. */
static void keep(DLManagedTensor *tensor)
{
    (void)tensor;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: es_tvm_run LIBRARY INPUT OUTPUT\n");
        return 2;
    }
    FILE *from = fopen(argv[2], "rb"), *to = fopen(argv[3], "wb");
    if (from == NULL || to == NULL) fail("cannot open INPUT or OUTPUT");
    TVMFFIAny path = text(argv[1]);
    const TVMFFIAny library = call_global("ffi.ModuleLoadFromFile", &path, 1);
    const TVMFFIAny machine = call(method(library, "vm_load_executable").v_obj, NULL, 0, "vm_load_executable");
    TVMFFIAny setup[3] = {integer(kDLCPU), integer(0), integer(2)}; /* device, index, pooled memory */
    call(method(machine, "vm_initialization").v_obj, setup, 3, "vm_initialization");
    const TVMFFIAny run = method(machine, "main");

    size_t size = ES_INPUT_BITS / 8;
    for (int i = 0; i < DIMENSIONS; i++) size *= (size_t)shape[i];
    void *data = aligned_alloc(64, (size + 63) / 64 * 64);
    if (data == NULL) fail("no memory for the input");
    DLManagedTensor input = {.deleter = keep};
    input.dl_tensor = (DLTensor){.data = data, .device = {kDLCPU, 0}, .ndim = DIMENSIONS,
        .dtype = {ES_INPUT_CODE, ES_INPUT_BITS, 1}, .shape = shape};
    TVMFFIAny value = {.type_index = kTVMFFITensor};
    TVMFFIObjectHandle tensor = NULL;
    if (TVMFFITensorFromDLPack(&input, 64, 0, &tensor) != 0) fail("the input's tensor");
    value.v_obj = tensor;
    while (fread(data, 1, size, from) == size) {
        const TVMFFIAny result = call(run.v_obj, &value, 1, "main");
        if (result.type_index != kTVMFFITensor) fail("main returns no tensor");
        const DLTensor *output = (const DLTensor *)(const void *)((const char *)result.v_obj + sizeof(TVMFFIObject));
        size_t bytes = output->dtype.bits / 8u;
        for (int32_t i = 0; i < output->ndim; i++) bytes *= (size_t)output->shape[i];
        if (fwrite((const char *)output->data + output->byte_offset, 1, bytes, to) != bytes) fail("writing OUTPUT");
        TVMFFIObjectDecRef(result.v_obj);
    }
    return fclose(to) == 0 ? 0 : 1;
}
