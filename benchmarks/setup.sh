#!/bin/sh
# Makes the virtual environments beside this file, with the versions that RESULTS.md was measured with.
set -e
cd "$(dirname "$0")"
env() { n=$1; shift; python3 -m venv "venv-$n"; "venv-$n/bin/pip" install -q "$@"; }
env torch torch==2.13.0 numpy==2.4.6 setuptools wheel   # inductor needs g++
env jax jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
env misc numpy==2.4.6 numba==0.68.1 numexpr==2.14.2 onnxruntime==1.31.1 onnx==1.23.2
env tinygrad tinygrad==0.14.0 numpy==2.4.6
env halide halide==21.0.0 numpy==2.4.6
# 0.27.0.post1 (the newest) installs and compiles, but its meta_schedule segfaults in ffi::ToJSONGraph
env tvm25 apache-tvm==0.25.0 apache-tvm-ffi==0.1.12 numpy==2.4.6 psutil cloudpickle tornado xgboost-cpu
env taichi taichi==1.7.4 numpy==2.4.6
env openvino openvino==2026.4.1 numpy==2.4.6
# tinygrad's CPU device needs clang and libLLVM: Debian's, unpacked here and not installed
mkdir -p llvm19/debs && (cd llvm19/debs && apt-get download clang-19 libclang-cpp19 libclang-common-19-dev libllvm19 lld-19 && for d in *.deb; do dpkg -x "$d" ..; done)
env intarsia -e ..
venv-misc/bin/python hw/measure.py
# tvm.tuned: TVM_NUM_THREADS=2 venv-tvm25/bin/python -m adapters.tvm_ 96 mm_1024; ... 128 mlp
