"""NVIDIA's driver without a GPU: a library with the functions that `runtime/cuda.py` calls, which takes down what it is
told. It is called as the real one is, so that wrong types of arguments show."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#include <stddef.h>
#include <string.h>

typedef struct {
    unsigned grid[3], block[3], shared;
    void *stream;
    void *attributes;
    unsigned attribute_count;
} Config;

typedef struct {
    unsigned grid[3], block[3], shared, attribute_count;
    void *stream, *function, *context;
    long long values[8];
} Launch;

static void *context_stack[8];
static int depth;

int parameters;         /* how many are read of each launch */
int wide;               /* a bit for each that has 8 bytes */
int launches;
Launch last;
int events, destroyed;
int refused;            /* what the next launch gives */

int cuInit(unsigned flags) { return flags != 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)(size_t)(0x7f0000001000 + device);
    return 0;
}
int cuCtxGetCurrent(void **context) { *context = context_stack[depth]; return 0; }
int cuCtxPushCurrent_v2(void *context) { context_stack[++depth] = context; return 0; }
int cuCtxPopCurrent_v2(void **context) { *context = context_stack[depth--]; return 0; }
int cuModuleLoadData(void **module, const void *image) {
    *module = (void *)0x7f0000002000;
    return memcmp(image, "\177ELF", 4);
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)0x7f0000003000;
    return module != (void *)0x7f0000002000 || name[0] == 0;
}
int cuFuncSetCacheConfig(void *function, int kind) { return function != (void *)0x7f0000003000 || kind != 1; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return attribute != 8 || value <= 48 << 10; }
int cuLaunchKernelEx(const Config *config, void *function, void **values, void **extra) {
    if (context_stack[depth] != (void *)0x7f0000001000) return 201;
    if (extra || refused) return refused ? refused : 1;
    memcpy(last.grid, config->grid, sizeof last.grid);
    memcpy(last.block, config->block, sizeof last.block);
    last.shared = config->shared;
    last.attribute_count = config->attribute_count;
    last.stream = config->stream;
    last.function = function;
    for (int n = 0; n < parameters; n++)
        last.values[n] = wide >> n & 1 ? *(long long *)values[n] : *(int *)values[n];
    launches++;
    return 0;
}
int cuMemcpyDtoDAsync_v2(size_t target, size_t source, size_t size, void *stream) {
    memmove((void *)target, (void *)source, size);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *target, size_t source, size_t size, void *stream) {
    memmove(target, (void *)source, size);
    return 0;
}
int cuStreamSynchronize(void *stream) { return 0; }
int cuEventCreate(void **event, unsigned flags) {
    *event = (void *)(0x7f0000004000 + (size_t)events++);
    return flags != 0;
}
int cuEventRecord(void *event, void *stream) { return 0; }
int cuEventSynchronize(void *event) { return 0; }
int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    *milliseconds = (float)((size_t)end - (size_t)start);
    return 0;
}
int cuEventDestroy_v2(void *event) { destroyed++; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 36 ? 3201000 : attribute == 37 ? 6144 : 0;
    return device != 0;
}
int cuGetErrorString(int code, const char **text) { *text = code == 719 ? "unspecified launch failure" : 0; return 0; }
"""


class Launch(ctypes.Structure):
    """What the last launch was told."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("attribute_count", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("function", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("values", ctypes.c_longlong * 8),
    )


def build(folder: Path) -> ctypes.CDLL:
    """Compile and load the library."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler")
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


def number(driver: ctypes.CDLL, name: str) -> ctypes.c_int:
    """One of the library's counters."""
    return ctypes.c_int.in_dll(driver, name)
